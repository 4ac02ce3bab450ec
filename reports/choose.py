"""Which row is best for a budget of network calls, in words: the front of quality against cost, and how sure it is."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reports.progress import format_seconds

Row = Mapping[str, Any]

_OF_COST = ("num_steps", "speed_up")
BUDGETS = (1, 5, 10, 20, 50, 100, math.inf)  # network calls an image

# What rows are judged by, the first that more than one of them has: key -> (name, what it says).
QUALITIES = {
    "fid": (
        "FID",
        "Frechet distance between Gaussian fits of Inception features of samples and of a reference; below 10,000 "
        "images a row it is called FID@n, and is larger for that alone.",
    ),
    "block_frechet": (
        "block Frechet distance",
        "Frechet distance between Gaussian fits of block means of samples and real images. No network judges it, and "
        "it is not an FID.",
    ),
    "distance": (
        "distance to the reference run",
        "root mean square difference, of black to white, from a run of many calls that began from the same noise. It "
        "judges how well the model's own flow is followed, not the model; samplers that add noise have none.",
    ),
}
SAME = ("checkpoint", "n", "seed", "reference", "machine")  # what rows of one comparison have in common


class Choice(NamedTuple):
    """What to use for at most `budget` network calls an image."""

    budget: float
    row: Row | None  # None: nothing was measured that takes so few
    words: str


def judged(rows: Sequence[Row]) -> tuple[str, list[Row]]:
    """The key that rows are judged by, and the rows that have it. Raises ValueError if no row can be judged."""
    of_few = sorted({key for row in rows for key in row if re.fullmatch(r"fid@\d+", key)})
    for key in (*of_few, *QUALITIES):
        found = [row for row in rows if _number(row.get(key)) and _number(row.get("calls"))]
        if len(found) > 1 or (found and len(rows) == 1):
            return key, found
    raise ValueError(
        f"None of {len(rows)} rows has both calls and one of {', '.join(QUALITIES)}; make some with --mode=compare or "
        "--mode=sweep."
    )


def check_comparable(rows: Sequence[Row], where: str) -> None:
    """Raises ValueError when rows of different models, numbers of images, seeds, references or machines are mixed."""
    for key in SAME:
        values = list(dict.fromkeys(str(row.get(key)) for row in rows))
        if len(values) > 1:
            raise ValueError(
                f"{where} mixes rows whose {key!r} differs ({', '.join(values)}); a report compares like with like. "
                "Use one --workdir for each, or take the other rows out of the file."
            )


def quality_words(key: str) -> tuple[str, str]:
    """Name and meaning of what rows are judged by; "fid@5000" is the FID of so many images."""
    said, meaning = QUALITIES[key.partition("@")[0]]
    return said + key.removeprefix("fid") if key.startswith("fid") else said, meaning


def name(row: Row) -> str:
    """ "unipc, 10 calls" """
    gradients = f" and {row['gradient_calls']} gradient calls" if row.get("gradient_calls") else ""
    series = row.get("series") or with_series([row])[0]["series"]
    return f"{series}, {row['calls']} call{'s' if row['calls'] != 1 else ''}{gradients}"


def with_series(rows: Sequence[Row]) -> list[Row]:
    """The rows with a key `series`: the method, the mode of pds, and the settings in which the method's rows differ.

    What sets the cost (steps, speed_up) makes no series: its values are the points of one line.
    """
    settings = [_settings(row) for row in rows]
    found: list[Row] = []
    for row, own in zip(rows, settings, strict=True):
        others = [other for other, of in zip(settings, rows, strict=True) if of["method"] == row["method"]]
        telling = [key for key in own if key == "pds_mode" or any(other.get(key) != own[key] for other in others)]
        words = [own[key] if key == "pds_mode" else f"{key} {own[key]}".strip().replace("_", " ") for key in telling]
        found.append({**row, "series": f"{row['method']} ({', '.join(words)})" if words else row["method"]})
    return found


def _settings(row: Row) -> dict[str, str]:
    """ "method=pc,snr=0.1,num_steps=50" -> {"snr": "0.1"}; words without a value are settings of their own."""
    found = {"pds_mode": str(row["pds_mode"])} if row.get("pds_mode") and row["method"] == "pds" else {}
    for part in str(row.get("point") or "").split(","):
        key, _, value = part.partition("=")
        if key and key not in ("method", *_OF_COST):
            found[key] = value
    return found


def recommend(rows: Sequence[Row], quality: str, budgets: Sequence[float] = BUDGETS) -> list[Choice]:
    """The row to use for each budget: the cheapest that cannot be told from the best within it.

    Two rows cannot be told apart where the value of one lies within the interval (`<quality>_low`, `_high`) of the
    other; without intervals the best is taken.
    """
    choices = []
    for budget in budgets:
        within = [row for row in rows if row["calls"] <= budget]
        if not within:
            words = "Nothing that was measured takes so few calls. A student may, see docs/methods/consistency.md."
            choices.append(Choice(budget, None, words))
            continue
        best = min(within, key=lambda row: row[quality])
        high = best.get(f"{quality}_high", best[quality])
        chosen = min((row for row in within if row[quality] <= high), key=lambda row: (row["calls"], row[quality]))
        choices.append(Choice(budget, chosen, _words(chosen, best, quality)))
    return choices


def _words(chosen: Row, best: Row, quality: str) -> str:
    said = f"{name(chosen)}: {quality_words(quality)[0]} {_value(chosen, quality)}."
    if chosen is not best:
        said += f" {name(best)} scores {_value(best, quality)}, which cannot be told from it."
    if chosen.get("learning_seconds"):
        said += f" Its schedule was learned here in {format_seconds(chosen['learning_seconds'])}."
    floor = chosen.get(f"{quality}_floor")
    if floor is not None and chosen.get(f"{quality}_low", math.inf) <= floor:
        said += f" That is what as many perfect samples would score ({floor:.3g})."
    return said


def _value(row: Row, key: str) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    interval = f" ({low:.3g} to {high:.3g})" if low is not None and high is not None else ""
    return f"{row[key]:.3g}{interval}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
