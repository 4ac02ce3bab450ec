"""What metrics accept, and what they say to the rest."""

import jax.numpy as jnp
import numpy as np
import pytest

from metrics.block_means import block_means
from metrics.inputs import to_unit, unit_batches


def test_bytes_and_floats_mean_the_same_image():
    image = np.arange(0, 192, dtype=np.uint8).reshape(1, 8, 8, 3)
    assert to_unit(image).dtype == np.float64
    np.testing.assert_array_equal(to_unit(image), to_unit(image / 255.0))


def test_device_arrays_and_bfloat16_are_taken():
    np.testing.assert_array_equal(to_unit(jnp.full((1, 2, 2, 1), 0.5, jnp.bfloat16)), 0.5)


def test_batches_cover_the_set_in_order():
    images = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024, 3), dtype=np.uint8)
    batches = list(unit_batches(images))
    assert len(batches) > 1 and max(batch.nbytes for batch in batches) <= 1 << 26
    np.testing.assert_array_equal(np.concatenate([batch[:, 0, 0, 0] for batch in batches]), images[:, 0, 0, 0] / 255)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((8, 8, 3)), r"shape \(8, 8, 3\)"),
        (np.zeros((1, 3, 8, 8)), r"shape \(1, 3, 8, 8\).*moveaxis"),
        (np.zeros((1, 8, 8, 3), np.int64), "dtype int64"),
        (np.full((1, 8, 8, 3), -0.5), r"range over \[-0.5, -0.5\].*\(x \+ 1\) / 2"),
        (np.full((1, 8, 8, 3), 1.01), r"range over \[1.01, 1.01\]"),
        (np.full((2, 8, 8, 3), np.nan), r"samples \[0, 1\] hold NaN.*--speed_up"),
    ],
)
def test_other_images_are_refused_with_the_remedy(images, message):
    with pytest.raises(ValueError, match=message):
        to_unit(images, "samples")


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        list(unit_batches(np.zeros((0, 8, 8, 3))))


def test_block_means_are_flattened_channel_first():
    blocks = np.arange(2 * 3 * 2).reshape(2, 3, 2) / 100  # rows, columns, channels of blocks
    ripple = np.tile([[-0.1, 0.1], [0.1, -0.1]], (4, 6))[..., None]  # zero mean over every 4 x 2 pixels
    images = blocks.repeat(4, axis=0).repeat(4, axis=1) + ripple + 0.2
    images = np.concatenate([images, images[..., :1]], axis=-1)[None]
    found = block_means(images, block=4)
    expected = np.concatenate([blocks[..., 0].ravel(), blocks[..., 1].ravel(), blocks[..., 0].ravel()]) + 0.2
    np.testing.assert_allclose(found, expected[None], rtol=1e-12)


def test_blocks_that_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="Blocks of 5 x 5 do not tile 8 x 8"):
        block_means(np.zeros((1, 8, 8, 3)), block=5)
