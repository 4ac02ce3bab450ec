"""Images are where the grid says they are, enlarged without change; words take room and stay inside."""

import numpy as np
import pytest
from PIL import Image as Pillow

from reports.animation import write_animation
from reports.grids import comparison_grid, image_grid

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
ENLARGED = IMAGES.repeat(12, axis=1).repeat(12, axis=2)  # 96 pixels


def ink(picture):
    return (picture < 128).all(axis=-1)


def test_images_are_enlarged_and_placed_row_by_row():
    grid = image_grid(IMAGES, columns=3)
    assert grid.shape == (12 + 2 * 96 + 4 + 12, 12 + 3 * 96 + 2 * 4 + 12, 3)
    for number, image in enumerate(ENLARGED):
        y, x = 12 + number // 3 * 100, 12 + number % 3 * 100
        np.testing.assert_array_equal(grid[y : y + 96, x : x + 96], image)
    assert (grid[112:208, 212:] == 255).all()  # the sixth place is empty


def test_the_default_grid_is_near_square():
    assert image_grid(np.repeat(IMAGES[:1], 16, axis=0)).shape[:2] == (24 + 4 * 96 + 12, 24 + 4 * 96 + 12)
    np.testing.assert_array_equal(image_grid(IMAGES), image_grid(IMAGES, columns=3))


def test_a_caption_is_written_below_and_wrapped():
    bare = image_grid(np.full((4, 8, 8, 1), 255, np.uint8))
    one = image_grid(np.full((4, 8, 8, 1), 255, np.uint8), caption="pds")
    many = image_grid(np.full((4, 8, 8, 1), 255, np.uint8), caption="pds at speed-up 20, " * 6)
    assert bare.shape[0] < one.shape[0] < many.shape[0] and bare.shape[1] == many.shape[1]
    assert not ink(bare).any() and ink(one)[bare.shape[0] - 12 :].any() and not ink(many)[: bare.shape[0] - 12].any()
    assert not ink(many)[:, :10].any() and not ink(many)[:, -10:].any() and not ink(many)[-4:].any()


def test_large_images_are_reduced_to_fit():
    grid = image_grid(np.full((2, 10, 5000, 3), 7, np.uint8), columns=1)
    assert grid.shape[1] == 12 + 2500 + 12
    assert (grid[12:17, 12:-12] == 7).all()


def test_a_comparison_has_its_labels_left_and_on_top():
    grid = comparison_grid({"vanilla": IMAGES[:2] | 128, "pds": IMAGES[2:4] | 128}, ["200 steps", "66 steps"])
    left, top = grid.shape[1] - 12 - 196, grid.shape[0] - 12 - 196
    for row in range(2):
        for column in range(2):
            y, x = top + row * 100, left + column * 100
            expected = (IMAGES[2 * row + column] | 128).repeat(12, axis=0).repeat(12, axis=1)
            np.testing.assert_array_equal(grid[y : y + 96, x : x + 96], expected)
            assert ink(grid)[y : y + 96, :left].any() and ink(grid)[:top, x : x + 96].any()
    assert not ink(grid)[:top, :left].any()


def test_rows_without_labels_take_no_room():
    assert comparison_grid({"": IMAGES}).shape[1] == 12 + 5 * 100 - 4 + 12


@pytest.mark.parametrize("rows, columns", [({"a": IMAGES, "b": IMAGES[:2]}, []), ({"a": IMAGES}, ["one"]), ({}, [])])
def test_rows_that_do_not_match_are_refused(rows, columns):
    with pytest.raises(ValueError, match="rows of equally many images.*same --seeds"):
        comparison_grid(rows, columns)


def test_no_images_make_no_grid():
    with pytest.raises(ValueError, match="at least one image"):
        image_grid(IMAGES[:0])


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_holds_its_last_frame(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    frames = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (0, 100, 250)])
    write_animation(path, frames, frame_ms=50, hold_ms=900)
    with Pillow.open(path) as film:
        durations, values = [], []
        for number in range(film.n_frames):
            film.seek(number)
            film.load()
            durations.append(film.info["duration"])
            values.append(int(np.asarray(film.convert("RGB")).mean()))
        assert film.info["loop"] == 0
    assert durations == [50, 50, 900]
    np.testing.assert_allclose(values, [0, 100, 250], atol=3)


def test_other_formats_and_empty_films_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.mp4 of 3 frames cannot be written: name it \.gif or \.webp"):
        write_animation(tmp_path / "a.mp4", np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="of 0 frames"):
        write_animation(tmp_path / "a.webp", np.zeros((0, 4, 4, 3), np.uint8))


def test_labels_take_as_much_room_as_is_asked_for_so_that_columns_line_up():
    images = np.zeros((2, 96, 96, 3), np.uint8)
    pictures = [comparison_grid({label: images}, label_width=150) for label in ("a", "a longer label")]
    assert pictures[0].shape == pictures[1].shape
    assert [int(np.argmax((picture == 0).all(-1).sum(0) > 90)) for picture in pictures] == [12 + 150 + 12] * 2
    assert comparison_grid({"": images}, label_width=150).shape[1] < 150 + 2 * 96
