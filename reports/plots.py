"""Plots from result rows: quality against cost, spectra, time grids. Made for a page or a paper, on white, at 200 dpi.

matplotlib is an extra (`pip install .[plot]`) and imported inside the functions; no pyplot, hence no global figure and
no display needed. Every function writes one PNG atomically.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from reports.atomic import write_atomically

Spectrum = Float[np.ndarray, "c k"]
Scales = Float[np.ndarray, "n"]

# Okabe and Ito's colours, told apart by colour-blind readers too; methods keep their place in the order they come in.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_MARKERS = "osD^vPX*"
_BAND: Any = {"color": "#DDDDDD", "linewidth": 9, "marker": "o", "markersize": 15, "solid_capstyle": "round"}
_BESIDE: Any = {"textcoords": "offset points", "fontsize": 8, "color": "#333333", "annotation_clip": False}
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 6.5,
}


def plot_quality(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    quality: str,
    cost: str,
    labels: Mapping[str, str],
    title: str = "",
    floor: float | None = None,
) -> None:
    """Quality (lower is better) against cost, one line a method, both axes logarithmic, with the named Pareto front.

    Args:
      rows: with keys `method`, `quality`, `cost`; `<quality>_low` and `<quality>_high` become error bars. Rows
        without a positive, finite quality and cost are left out.
      labels: words for the axes, {key: text}; a key that has none stands for itself.
      floor: drawn as a line, what a perfect sampler would score.

    Raises ValueError when no row can be drawn.
    """
    rows = [row for row in rows if _drawable(row.get(quality)) and _drawable(row.get(cost))]
    if not rows:
        raise ValueError(f"No row has a positive, finite {quality!r} and {cost!r}; there is nothing to plot in {path}.")
    with _canvas(path, 4.8, 4.4) as axes:  # two of them stand side by side on a page
        front = pareto_front([(row[cost], row[quality]) for row in rows])
        axes.plot(*zip(*front, strict=True), **_BAND)
        axes.plot([], [], color=_BAND["color"], linewidth=7, label="Pareto front")
        for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: row[cost])
            at, values = [row[cost] for row in own], [row[quality] for row in own]
            colour, again = _COLOURS[number % len(_COLOURS)], number // len(_COLOURS)
            spread = np.array([_spread(row, quality) for row in own]).T
            axes.errorbar(at, values, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.2, alpha=0.35)
            axes.plot(
                at,
                values,
                color=colour,
                marker=_MARKERS[(number + again) % len(_MARKERS)],
                linestyle="--" if again else "-",
                markeredgecolor="white",
                markeredgewidth=0.6,
                label=method,
            )
        for row in rows:
            if (row[cost], row[quality]) in front:
                axes.annotate(row["method"], (row[cost], row[quality]), xytext=(6, -11), **_BESIDE)
        if floor is not None:
            axes.axhline(floor, color="#555555", linewidth=0.8, linestyle=(0, (5, 3)), label="perfect sampler")
        axes.set(xscale="log", yscale="log", title=title)
        axes.set(xlabel=labels.get(cost, cost), ylabel=labels.get(quality, quality))
        _plain_ticks(axes.xaxis, axes.yaxis)
        axes.figure.legend(loc="outside lower center", ncols=3)


def plot_spectra(
    path: str | Path, spectra: Mapping[str, Spectrum], reference: Spectrum, reference_name: str, title: str = ""
) -> None:
    """Radial power spectra [c, k] (mean over channels), and their ratio to that of real images.

    On the left the spectra, on the right spectrum / reference: 1 is right, above is noise, below is blur.
    """
    with _canvas(path, 8.2, 3.5, columns=2) as (left, right):
        radii, real = np.arange(1, reference.shape[1]), reference.mean(axis=0)[1:]
        left.plot(radii, real, color="#CCCCCC", linewidth=5, label=reference_name)
        right.axhline(1, color="#CCCCCC", linewidth=5)
        for number, (name, spectrum) in enumerate(spectra.items()):
            power, colour = spectrum.mean(axis=0)[1:], _COLOURS[number % len(_COLOURS)]
            left.plot(radii, power, color=colour, label=name)
            right.plot(radii, power / real, color=colour)
        for axes in (left, right):
            axes.set(xscale="log", yscale="log", xlabel="cycles an image")
            _plain_ticks(axes.xaxis)
        _plain_ticks(right.yaxis)
        left.set(title=title, ylabel="power, mean |FFT|²")
        right.set(ylabel=f"power over that of {reference_name}")
        left.legend(loc="lower left")


def plot_grids(path: str | Path, grids: Sequence[tuple[str, Scales]], title: str = "") -> None:
    """Time grids (name, scales) as ticks on one logarithmic axis of s, a row each, sampling from left to right.

    A final s of 0 (the image itself) is drawn at the right edge and labelled so, though no logarithm reaches it.
    """
    positive = np.concatenate([scales[scales > 0] for _, scales in grids])
    edge = positive.min() / (positive.max() / positive.min()) ** 0.08
    with _canvas(path, 8.2, 0.9 + 0.36 * len(grids)) as axes:
        for number, (_, scales) in enumerate(grids):
            colour, shown = _COLOURS[number % len(_COLOURS)], np.where(scales > 0, scales, edge)
            axes.plot(shown, np.full(len(shown), number), color=colour, linewidth=0.8, alpha=0.5)
            axes.plot(shown, np.full(len(shown), number), "|", color=colour, markersize=11, markeredgewidth=1.6)
        axes.set(xscale="log", xlabel="noise scale s = sigma/alpha", title=title, ylim=(len(grids) - 0.5, -0.5))
        decades = 10.0 ** np.arange(np.ceil(np.log10(positive.min())), np.floor(np.log10(positive.max())) + 1)
        ends_at_zero = any(scales[-1] == 0 for _, scales in grids)
        axes.set_xticks([*decades, edge] if ends_at_zero else decades)
        axes.set_xticklabels([*(f"{value:g}" for value in decades), "0"] if ends_at_zero else decades)
        axes.minorticks_off()
        axes.set_yticks(range(len(grids)), [f"{name} ({len(scales) - 1} steps)" for name, scales in grids])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.invert_xaxis()


def plot_learning(path: str | Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str) -> None:
    """Losses against updates, one line a name -> (updates, losses); the losses on a logarithmic axis."""
    with _canvas(path, 5.2, 3.2) as axes:
        for number, (name, (updates, losses)) in enumerate(curves.items()):
            axes.plot(updates, losses, color=_COLOURS[number % len(_COLOURS)], label=name)
        axes.set(yscale="log", xlabel="updates", title=title)
        axes.legend()
        _plain_ticks(axes.yaxis)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, quality) that no other beats in both, cheapest first; less is better in either."""
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points):
        if not front or quality < front[-1][1]:
            front.append((cost, quality))
    return front


def _drawable(value):
    return isinstance(value, int | float) and np.isfinite(value) and value > 0


def _spread(row, key):
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return (0.0, 0.0) if low is None or high is None else (row[key] - low, high - row[key])


@contextlib.contextmanager
def _canvas(path: str | Path, width: float, height: float, columns: int = 1) -> Iterator[Any]:
    """Axes to draw on, in our style; the picture is written when the block ends."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib, an extra of this package: pip install '.[plot]'.") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=200)
        yield figure.subplots(1, columns)
        write_atomically(path, lambda file: figure.savefig(file, format="png"))


def _plain_ticks(*log_axes):
    """0.1 and 20 instead of 10^-1 and 2 x 10^1 on logarithmic axes, with enough of them on short ones."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for axis in log_axes:
        low, high = sorted(axis.get_view_interval())
        decades = np.log10(high / low)
        subs = (1, 2, 3, 5) if decades < 2 else (1, 2, 5) if decades < 3 else (1,)
        short = decades < 0.8
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]) if short else LogLocator(subs=subs, numticks=20))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
