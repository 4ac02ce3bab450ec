"""./run tour: five stops whose settings the shipped files have, and one sheet of their pictures."""

import numpy as np
import pytest

import run_lib
from benchmarks import tour


@pytest.mark.slow
def test_the_five_stops_show_five_families_at_the_calls_their_captions_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "SEEDS", range(1))
    (tmp_path / "given").mkdir()
    grey = np.full((32, 32, 3), 128, np.uint8)
    tour.write_png(tmp_path / "given" / "0.png", grey)
    tour.write_png(tmp_path / "mask.png", np.uint8(255) * np.tri(32, dtype=np.uint8)[..., None])
    calls = {}
    for stop in tour.STOPS:
        models = [tour.open_row(row, tmp_path) for row in stop.rows]
        calls[stop.name] = [run_lib.create_sampler(model, model.config).nfe for model in models]
    assert calls == {
        "1_solvers": [10, 10, 39],
        "2_preconditioning": [100, 100],
        "3_splitting": [5, 5, 20],
        "4_learned_schedules": [5, 5, 39],
        "5_students": [4, 4, 1, 39],
    }


def test_distances_are_to_the_last_row_and_the_given_images_have_none():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    assert list(tour._labelled({"given": black, "ddim, 5 calls": black, "heun, 9 calls": grey})) == [
        "given",
        "ddim, 5 calls, distance 0.200",
        "heun, 9 calls",
    ]


def test_the_middle_of_given_images_is_hidden(tmp_path, monkeypatch):
    class Drawn:
        images = np.ones((2, 8, 8, 3), np.float32)

    monkeypatch.setattr(tour, "open_row", lambda row, folder: None)
    monkeypatch.setattr(run_lib, "sample", lambda model, seeds: Drawn)
    monkeypatch.setattr(run_lib, "to_pixels", lambda model, images: np.uint8(255 * images))
    shown = tour.spoil(tmp_path)
    assert (shown[:, 2:6, 2:6] == 128).all() and (shown == 255).sum() == 2 * 3 * (64 - 16)
    mask = tour.read_png(tmp_path / "mask.png").image[..., 0]
    assert (mask[2:6, 2:6] == 0).all() and (mask == 255).sum() == 64 - 16
    assert len(list((tmp_path / "given").iterdir())) == 2


@pytest.mark.parametrize("widths", [(40, 60), (60, 40)])
def test_the_sheet_holds_every_picture_whole(widths):
    pictures = [np.full((10, width, 3), number + 1, np.uint8) for number, width in enumerate(widths)]
    sheet = tour.sheet(pictures)
    assert sheet.shape == (2 * (10 + tour.GAP), 60, 3)
    assert [(sheet == number + 1).sum() for number in range(2)] == [picture.size for picture in pictures]
