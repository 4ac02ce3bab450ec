"""The rounding rule, PNGs that come back as they went, and damage that is noticed."""

import errno
import os

import numpy as np
import pytest
from PIL import Image as Pillow

from reports.atomic import write_atomically, write_text
from reports.images import png_shape, read_png, to_uint8, write_png

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_values_are_rounded_to_the_nearest_byte_and_clamped():
    levels = np.array([-3.0, 0.0, 0.49 / 255, 0.51 / 255, 100.4 / 255, 100.6 / 255, 1.0, 7.0])
    assert to_uint8(levels).tolist() == [0, 0, 0, 1, 100, 101, 255, 255]
    assert to_uint8(levels, truncate=True).tolist() == [0, 0, 0, 0, 100, 100, 255, 255]


def test_every_byte_survives_the_way_to_the_model_and_back():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(levels.astype(np.float32) / np.float32(255)), levels)


def test_nan_is_not_passed_off_as_black():
    with pytest.raises(ValueError, match="NaN or infinity: the sampler diverged.*--speed_up"):
        to_uint8(np.array([0.5, np.nan]))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_keeps_pixels_and_words(tmp_path, channels):
    image = COLOUR[..., :channels]
    write_png(tmp_path / "a.png", image, {"seed": 3, "method": "unipc", "note": "σ = 80, α = 5"})
    found = read_png(tmp_path / "a.png")
    np.testing.assert_array_equal(found.image, image)
    assert found.text == {"seed": "3", "method": "unipc", "note": "σ = 80, α = 5"}
    assert png_shape(tmp_path / "a.png") == (5, 7, channels)
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_png_cut_at_any_byte_or_damaged_at_any_byte_is_not_whole(tmp_path):
    write_png(tmp_path / "a.png", COLOUR, {"seed": 3})
    whole, path = (tmp_path / "a.png").read_bytes(), tmp_path / "b.png"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert png_shape(path) is None, length
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert png_shape(path) is None, place
    path.write_bytes(whole)
    assert png_shape(path) == (5, 7, 3)
    assert png_shape(tmp_path / "none.png") is None


def test_pngs_of_other_programs_are_understood(tmp_path):
    Pillow.fromarray(COLOUR).save(tmp_path / "a.png", optimize=True)
    assert png_shape(tmp_path / "a.png") == (5, 7, 3)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png").image, COLOUR)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_atomically(tmp_path / "a.txt", fail)
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_is_named_with_what_to_do(tmp_path):
    def fill(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"The disk is full: .*a\.txt.*Free some space.*again") as caught:
        write_atomically(tmp_path / "a.txt", fill)
    assert caught.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []
