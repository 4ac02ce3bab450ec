"""Plots are written whole and draw what they are given; the front is the front."""

import importlib.util
import sys

import numpy as np
import pytest

from reports.images import png_shape, read_png
from reports.plots import pareto_front, plot_grids, plot_quality, plot_spectra

needs_matplotlib = pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is an extra")

ROWS = [
    {
        "method": method,
        "calls": calls,
        "d": factor / calls,
        "d_low": 0.9 * factor / calls,
        "d_high": 1.1 * factor / calls,
    }
    for method, factor in (("pds", 30.0), ("unipc", 3.0))
    for calls in (5, 10, 40)
]


def share_of(path, colour):
    """Share of pixels near a colour."""
    return np.mean(np.abs(read_png(path).image.astype(int) - colour).max(axis=-1) < 40)


@needs_matplotlib
def test_quality_is_drawn_for_every_method(tmp_path):
    plot_quality(tmp_path / "a.png", ROWS, "d", "calls", {"d": "distance"}, "title", floor=0.05)
    assert png_shape(tmp_path / "a.png") == (880, 960, 4)
    assert min(share_of(tmp_path / "a.png", (0, 0x72, 0xB2)), share_of(tmp_path / "a.png", (0xD5, 0x5E, 0))) > 1e-3


@needs_matplotlib
def test_rows_that_failed_are_left_out_and_none_left_is_said(tmp_path):
    failed = [{"method": "pc", "calls": 5, "d": value} for value in (float("nan"), float("inf"), 0.0, None)]
    plot_quality(tmp_path / "a.png", ROWS + failed, "d", "calls", {})
    with pytest.raises(ValueError, match="No row has a positive, finite 'd' and 'calls'"):
        plot_quality(tmp_path / "b.png", failed, "d", "calls", {})


def test_front_keeps_what_nothing_beats():
    points = [(5, 3.0), (1, 9.0), (2, 9.5), (5, 4.0), (7, 3.0), (9, 1.0)]
    assert pareto_front(points) == [(1, 9.0), (5, 3.0), (9, 1.0)]


@needs_matplotlib
def test_spectra_and_grids_are_drawn(tmp_path):
    real = 1e4 / np.arange(1.0, 18)[None].repeat(3, axis=0) ** 2.5
    plot_spectra(tmp_path / "spectra.png", {"noisy": real + 5}, real, "photographs")
    plot_grids(tmp_path / "grids.png", [("edm", np.array([80.0, 5, 0.1, 0])), ("ld3", np.array([80.0, 20, 2, 0.01]))])
    assert share_of(tmp_path / "spectra.png", (0, 0x72, 0xB2)) > 1e-3
    assert min(share_of(tmp_path / "grids.png", c) for c in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0))) > 5e-4


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[plot\]'"):
        plot_grids(tmp_path / "a.png", [("edm", np.array([80.0, 5, 0]))])
