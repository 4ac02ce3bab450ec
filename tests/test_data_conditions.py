"""The user's images: what comes in, in which range and size, and every way of giving something else."""

import numpy as np
import pytest
from PIL import Image as Pillow

from data import conditions

SHAPE = (8, 8, 3)


def save(path, pixels):
    Pillow.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def random_pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_a_picture_of_the_models_size_is_its_pixels_over_255(tmp_path):
    pixels = random_pixels(8, 8, 3)
    found = conditions.read_images(save(tmp_path / "a.png", pixels), SHAPE, "--start_image")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, pixels[None] / 255, rtol=1e-6)


def test_larger_pictures_are_cropped_to_the_centre_and_reduced_by_block_means(tmp_path):
    pixels = random_pixels(16, 24, 3)
    found = conditions.read_images(save(tmp_path / "a.png", pixels), SHAPE, "--start_image")[0]
    blocks = pixels[:, 4:20].reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(found * 255, np.rint(blocks), atol=1e-4)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name, value in (("b.png", 51), ("a.png", 204)):
        save(tmp_path / name, np.full((8, 8, 3), value))
    found = conditions.read_images(tmp_path, SHAPE, "--start_image")
    np.testing.assert_allclose(found.mean((1, 2, 3)), [0.8, 0.2], rtol=1e-6)


def test_a_grey_image_is_the_mean_of_the_colours(tmp_path):
    pixels = random_pixels(8, 8, 3)
    found = conditions.read_grey(save(tmp_path / "a.png", pixels), SHAPE, "k")
    np.testing.assert_allclose(found[0, ..., 0], pixels.mean(-1) / 255, rtol=1e-5)
    grey = conditions.read_grey(save(tmp_path / "b.png", pixels[..., 0]), SHAPE, "k")
    np.testing.assert_allclose(grey[0, ..., 0], pixels[..., 0] / 255, rtol=1e-5)


def test_small_images_are_taken_at_their_size_only(tmp_path):
    small = random_pixels(2, 2, 3)
    found = conditions.read_low_res(save(tmp_path / "a.png", small), SHAPE, 4, "k")
    np.testing.assert_allclose(found, small[None] / 255, rtol=1e-6)
    with pytest.raises(
        ValueError, match="is 2 x 2 pixels; to be enlarged 2 times to the model's 8 x 8 it must be 4 x 4"
    ):
        conditions.read_low_res(tmp_path / "a.png", SHAPE, 2, "config.guidance.image")


def test_arrays_of_floats_and_booleans_are_taken_as_they_are(tmp_path):
    values = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(conditions.read_images(tmp_path / "a.npy", SHAPE, "k"), values)
    np.save(tmp_path / "m.npy", np.eye(8, dtype=bool))
    np.testing.assert_array_equal(conditions.read_mask(tmp_path / "m.npy", SHAPE, "k")[..., 0], np.eye(8))


def test_a_mask_is_one_where_it_is_white(tmp_path):
    mask = 255 * np.eye(8)
    np.testing.assert_array_equal(conditions.read_mask(save(tmp_path / "m.png", mask), SHAPE, "k")[..., 0], np.eye(8))


def halves(value):
    mask = np.zeros((8, 8))
    mask[:4] = value
    return mask


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 6)), "config.guidance.mask: .*m.png is 8 x 6 pixels, the model draws 8 x 8; draw the mask"),
        (halves(254), "has 32 grey pixels; a mask is 255"),
        (np.zeros((8, 8)), "is all black: nothing is known"),
        (np.full((8, 8), 255), "is all white: nothing is left to paint"),
        (np.stack([halves(255), halves(0), halves(0)], -1), "has coloured pixels; a mask is black and white"),
    ],
)
def test_a_mask_that_is_none_is_refused(tmp_path, pixels, message):
    with pytest.raises(ValueError, match=message):
        conditions.read_mask(save(tmp_path / "m.png", pixels), SHAPE, "config.guidance.mask")


def test_two_masks_are_refused(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png", halves(255))
    with pytest.raises(ValueError, match="holds 2 images; give one mask"):
        conditions.read_mask(tmp_path, SHAPE, "config.guidance.mask")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8, 3), np.nan), "--start_image: .*a.npy has values that are NaN"),
        (np.full((8, 8, 3), 3.0), r"has values in \[3, 3\]; floats must lie in \[0, 1\]"),
        (np.zeros((8, 8, 2)), r"has shape \(1, 8, 8, 2\); images are"),
        (np.zeros((16, 16, 3)), "is 16 x 16, and arrays of floats are not resized; make it 8 x 8"),
        (np.array(["x"], object), "is no .npy file of numbers"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        conditions.read_images(tmp_path / "a.npy", SHAPE, "--start_image")


def test_missing_files_and_files_that_are_no_images_are_refused(tmp_path):
    for path in ("", tmp_path / "gone.png"):
        with pytest.raises(FileNotFoundError, match="--start_image=.*there is no such file; give an image"):
            conditions.read_images(path, SHAPE, "--start_image")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="a.png cannot be read as an image"):
        conditions.read_images(tmp_path / "a.png", SHAPE, "--start_image")
    save(tmp_path / "a.png", random_pixels(4, 9, 3))
    with pytest.raises(ValueError, match="a.png is 4 x 9 pixels, the model draws 8 x 8; give an image at least that"):
        conditions.read_images(tmp_path / "a.png", SHAPE, "--start_image")
