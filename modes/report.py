"""--mode=report: one page that says which method to use, from the rows and images of a sweep or a comparison.

    python main.py --mode=report --workdir W [--config C]

Reads W/results.jsonl, W/failures.jsonl and the images of each row; writes W/report/index.html, which holds everything
it shows, and the pictures beside it.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders.config import apply_overrides, resolve_config, shipped
from metrics import reference, spectrum
from modes.request import Request, workdir_of
from reports import choose, page, plots, rows
from reports.grids import comparison_grid
from reports.images import write_png
from reports.outputs import read_run

SHOWN = 8  # images of each method
LINES = 8  # methods in the pictures of images and grids
SPECTRA = 5  # in that of spectra
NAMED = 4  # of those that share a grid
REFERENCE_RUN = Path("compare", "reference")  # below the work directory: a comparison's run of many calls
COLUMNS = {  # behind method, steps, calls and what the rows are judged by
    "block_frechet": "block Frechet",
    "distance": "distance",
    "radial_power_error": "spectrum error",
    "residual_noise": "residual noise",
    "steady_seconds": "seconds",
    "compile_seconds": "compiling, s",
    "megabytes": "memory, MB",
}


def run(request: Request) -> None:
    """Writes the report of --workdir; --config is needed only for reference spectra (config.eval.reference)."""
    config = None
    if request.config is not None:
        config = resolve_config(request.config)
        apply_overrides(config, request.overrides)
    logging.info("Open %s in a browser.", write_report(workdir_of(request), config))


def write_report(workdir: Path, config: ConfigDict | None = None) -> Path:
    """W/report/index.html. Raises FileNotFoundError or ValueError where there is nothing to compare."""
    table = workdir / "results.jsonl"
    if not table.exists():
        raise FileNotFoundError(
            f"{table} is not there: measure something first, with --mode=compare or --mode=sweep and this --workdir."
        )
    newest = {row.get("point") or row.get("folder"): row for row in rows.read_rows(table)}
    everything = list(newest.values())
    quality, judged = choose.judged(everything)
    choose.check_comparable(judged, str(table))
    unjudged = [row for row in everything if row not in judged]
    judged = sorted(choose.with_series(judged), key=lambda row: (row["calls"], row[quality]))
    front = set(plots.pareto_front([(row["calls"], row[quality]) for row in judged]))
    best = [row for row in judged if (row["calls"], row[quality]) in front]
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    said, meaning = choose.quality_words(quality)
    parts = [
        page.paragraph(f"Methods are judged by the {said}: {meaning} Less is better."),
        page.heading("What to use"),
        _choices(judged, quality),
        page.heading("Quality against cost"),
        _quality(folder, judged, quality),
        page.heading("The same noise, each method"),
        _images(folder, workdir, best, judged),
        *_grids(folder, judged),
        *_spectra(folder, [*best, *_each_first(judged, best)][:SPECTRA], workdir, config),
        page.heading("All rows"),
        _table(judged, front, quality),
        page.heading("Commands of the front"),
        page.choices([(str(row["calls"]), choose.name(row), _commands(row)) for row in best]),
        *_rest(workdir, unjudged, {str(name) for name in newest}),
    ]
    path = folder / "index.html"
    page.write_page(path, "Which method should I use?", _facts(judged), parts)
    return path


def _facts(judged: Sequence[Mapping[str, Any]]) -> str:
    row = judged[0]
    against = f", against {row['reference_n']} images of {row['reference']}" if row.get("reference") else ""
    return (
        f"Checkpoint {row['checkpoint']} · {row['n']} images a row, seed {row['seed']}{against} · {row['machine']} · "
        f"{time.strftime('%Y-%m-%d')}"
    )


def _choices(judged: Sequence[Mapping[str, Any]], quality: str) -> str:
    """A line a recommendation for so many network calls at most; budgets that share one stand together."""
    lines = []
    for words, group in itertools.groupby(choose.recommend(judged, quality), key=lambda choice: choice.words):
        choices = list(group)
        first, last = (
            "100+" if math.isinf(each.budget) else f"{each.budget:.0f}" for each in (choices[0], choices[-1])
        )
        row = choices[0].row
        lines.append((first if first == last else f"{first} to {last}", words, _commands(row) if row else ""))
    return page.choices(lines)


def _commands(row: Mapping[str, Any]) -> str:
    """What draws with a row's settings; before it what learns them, where they were learned."""
    return "\n".join(row[key] for key in ("learn", "draw") if row.get(key))


def _quality(folder: Path, judged: Sequence[Mapping[str, Any]], quality: str) -> str:
    labels = {"calls": "network calls an image", "steady_seconds": "seconds for all images, without compilation"}
    labels[quality] = choose.quality_words(quality)[0]
    floor = judged[0].get(f"{quality}_floor")
    figures = []
    for cost, caption in (
        ("calls", "Quality against network calls. The grey band is the front: nothing measured beats it in both."),
        ("steady_seconds", "The same against time. Bars are 95 % intervals over the images."),
    ):
        timed = [{**row, "method": row["series"]} for row in judged if row.get(cost)]
        if timed:
            picture = folder / f"quality_{cost.removeprefix('steady_')}.png"
            plots.plot_quality(picture, timed, quality, cost, labels, "", floor)
            figures.append(page.figure(picture, caption))
    return page.pair(*figures)


def _images(folder: Path, workdir: Path, best: list, judged: list) -> str:
    """A row of images for each method on the front, then for others, from equal noise."""
    pictures = {}
    for row in [*best, *_each_first(judged, best)][:LINES]:
        images = _drawn(row)
        if images is not None:
            pictures[choose.name(row)] = images[:SHOWN]
    if not pictures:
        return page.paragraph("The images of these rows are no longer there.", "note")
    write_png(folder / "images.png", comparison_grid(pictures))
    return page.figure(
        folder / "images.png",
        "One column is one draw of noise. First the methods on the front, cheapest first; then others, each once.",
        wide=True,
    )


def _each_first(judged: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows that are not on the front: of each method the cheapest first, then their other ones."""
    others = [row for row in judged if row not in best]
    seen: dict[str, int] = {}
    order = []
    for row in others:
        order.append(seen.get(row["series"], 0))
        seen[row["series"]] = order[-1] + 1
    return [row for _, row in sorted(zip(order, others, strict=True), key=lambda pair: pair[0])]


def _drawn(row: Mapping[str, Any]) -> np.ndarray | None:
    try:
        return read_run(row["folder"])[0]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _grids(folder: Path, judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the deterministic methods step, those of ten steps or so; methods on one grid share a line."""
    users: dict[str, list[str]] = {}
    for row in judged:
        if row.get("grid") and row["series"] not in users.setdefault(row["grid"], []):
            users[row["grid"]].append(row["series"])
    if not users:
        return []
    known = [(_several(names), np.array([float(s) for s in grid.split(",")])) for grid, names in users.items()]
    shown = sorted(known, key=lambda entry: abs(len(entry[1]) - 11))[:LINES]
    shown.sort(key=lambda entry: len(entry[1]))
    plots.plot_grids(folder / "grids.png", shown)
    caption = "Each tick is a noise scale at which a method stands; from noise on the left to the image on the right."
    return [page.heading("Where they step"), page.figure(folder / "grids.png", caption, wide=True)]


def _several(names: Sequence[str]) -> str:
    """ "ddim, deis, dpmpp and 3 more" """
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _spectra(folder: Path, shown: Sequence[Mapping[str, Any]], workdir: Path, config: ConfigDict | None) -> list[str]:
    """Radial power of some methods against that of real images, or of the run of many calls."""
    statistics, first = find_statistics(workdir, config), None
    if statistics is not None:
        shape, power_of_all, against = statistics.image_shape, statistics.radial_power, statistics.name
    elif (long := _drawn({"folder": workdir / REFERENCE_RUN})) is not None:
        first = len(long)  # images from equal noise on both sides
        shape, power_of_all, against = long.shape[1:], spectrum.radial_power(long).mean(axis=0), "the reference run"
    else:
        return []
    drawn = {choose.name(row): images[:first] for row in shown if (images := _drawn(row)) is not None}
    if not drawn or next(iter(drawn.values())).shape[1:] != shape:
        return []
    power = {label: spectrum.radial_power(images).mean(axis=0) for label, images in drawn.items()}
    plots.plot_spectra(folder / "spectra.png", power, power_of_all, against)
    caption = (
        f"Radial power spectra, the front first; on the right over that of {against}: above 1 is noise, below is blur."
    )
    return [page.heading("Too smooth, too noisy?"), page.figure(folder / "spectra.png", caption, wide=True)]


def find_statistics(workdir: Path, config: ConfigDict | None) -> reference.Reference | None:
    """Of real images: W/reference.npz, or config.eval.reference; None where there is neither."""
    if (workdir / "reference.npz").exists():
        return reference.load_reference(workdir / "reference.npz")
    if config is not None and config.eval.reference:
        return reference.load_reference(shipped(config.eval.reference))
    return None


def _table(judged: Sequence[Mapping[str, Any]], front: set, quality: str) -> str:
    said = choose.quality_words(quality)[0]
    columns = {"series": "method", "steps": "steps", "calls": "calls", "gradient_calls": "gradient calls"}
    columns |= {quality: said, "interval": "95 % interval"} | COLUMNS
    shown = [_with_words(row, quality) for row in judged]
    columns = {key: text for key, text in columns.items() if any(row.get(key) for row in shown)}
    marked = [place for place, row in enumerate(judged) if (row["calls"], row[quality]) in front]
    return page.table(shown, columns, marked) + page.paragraph(
        "Tinted rows are on the front. Seconds are of all images of a row; compiling is 0 where a row could use the "
        "program of an earlier one; memory is that of the sampling program on a device, by the compiler's analysis.",
        "note",
    )


def _with_words(row: Mapping[str, Any], quality: str) -> dict[str, Any]:
    """The row with its interval in words and its memory in megabytes."""
    low, high, memory = row.get(f"{quality}_low"), row.get(f"{quality}_high"), row.get("peak_memory")
    steps = row.get("steps", row.get("num_steps"))
    return {
        **row,
        "steps": steps,
        "interval": f"{low:.3g} – {high:.3g}" if low is not None and high is not None else None,
        "megabytes": memory / 1e6 if memory else None,
    }


def _rest(workdir: Path, unjudged: Sequence[Mapping[str, Any]], measured: set[str]) -> list[str]:
    """What was measured and cannot be judged, and what failed and was not measured since."""
    parts = []
    if unjudged:
        names = [{"point": str(row.get("point") or row.get("folder")), "calls": row.get("calls")} for row in unjudged]
        parts.append(page.heading("Not judged"))
        parts.append(page.paragraph("These rows lack the quality that the others are judged by.", "note"))
        parts.append(page.table(names, {"point": "row", "calls": "calls"}))
    found = {(row.get("point"), row.get("error")) for row in rows.read_rows(workdir / "failures.jsonl")}
    failures = [{"point": point, "error": error} for point, error in sorted(found) if point not in measured]
    if failures:
        parts.append(page.heading("What failed"))
        parts.append(page.table(failures, {"point": "row", "error": "why"}))
    return parts
