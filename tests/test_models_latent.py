"""The codec in the units of diffusion, and tiled decoding against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import latent
from models.latent import Codec

FACTOR = 2
KERNEL = jax.random.normal(jax.random.key(0), (3, 3, 4, 12)) / 6


def encode(params, images):
    b, h, w, c = images.shape
    small = images.reshape(b, h // FACTOR, FACTOR, w // FACTOR, FACTOR, c).mean((2, 4))
    return params * jnp.concatenate([small, small[..., :1]], -1)


def decode(params, z):
    """A convolution, and channels to pixels: looks one place far."""
    out = jax.lax.conv_general_dilated(
        z, KERNEL.astype(z.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    b, h, w, _ = out.shape
    return params * out.reshape(b, h, w, FACTOR, FACTOR, 3).swapaxes(2, 3).reshape(b, h * FACTOR, w * FACTOR, 3)


def codec_of(**changes) -> Codec:
    return Codec(jnp.float32(1.5), encode, decode, **{"factor": FACTOR, **changes})


def test_diffusion_sees_latents_shifted_and_scaled_and_decoding_undoes_it():
    images = np.asarray(jax.random.normal(jax.random.key(1), (3, 8, 8, 3), jnp.float32))
    codec = codec_of(scale_factor=0.18215, shift=0.3)
    z = np.asarray(encode(1.5, images))
    np.testing.assert_allclose(codec.encode(images), (z - 0.3) * 0.18215, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(codec.decode(codec.encode(images)), decode(1.5, jnp.asarray(z)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        codec.to_images(codec.to_latents(jnp.asarray(images))), decode(1.5, jnp.asarray(z)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("h", "w", "tile", "overlap"), [(20, 13, 8, 4), (9, 9, 8, 4), (16, 30, 10, 5), (7, 40, 8, 4)])
def test_a_decoder_that_looks_no_further_than_the_overlap_is_decoded_exactly_in_tiles(h, w, tile, overlap):
    z = np.asarray(jax.random.normal(jax.random.key(2), (2, h, w, 4), jnp.float32))
    whole, tiled = codec_of(), codec_of(tile=tile, overlap=overlap)
    assert tiled.tiles(z.shape[1:]) > 1 == whole.tiles(z.shape[1:])
    np.testing.assert_allclose(tiled.decode(z), whole.decode(z), atol=1e-5)


def test_tiles_that_do_not_overlap_enough_show_their_seams():
    z = np.asarray(jax.random.normal(jax.random.key(2), (1, 16, 16, 4), jnp.float32))
    assert np.abs(codec_of(tile=8, overlap=0).decode(z) - codec_of().decode(z)).max() > 0.1


@pytest.mark.parametrize(
    ("side", "tile", "overlap"), [(64, 24, 6), (65, 24, 6), (25, 24, 12), (100, 24, 12), (24, 24, 6)]
)
def test_tiles_cover_everything_overlap_as_asked_and_their_shares_add_up_to_one(side, tile, overlap):
    found = latent.starts(side, tile, overlap)
    assert found[0] == 0 and found[-1] == max(0, side - tile)
    assert all(b - a <= tile - overlap for a, b in zip(found[:-1], found[1:], strict=True))
    shares = np.zeros(3 * side)
    for start in found:
        shares[3 * start : 3 * min(start + tile, side)] += latent.ramp(start, side, tile, found, overlap, 3)
    np.testing.assert_allclose(shares, 1, rtol=1e-12)


def test_a_call_of_the_decoder_sees_one_image_and_one_tile():
    seen = []

    def watching(params, z):
        seen.append(z.shape)
        return decode(params, z)

    codec = Codec(jnp.float32(1.0), encode, watching, FACTOR, tile=8, overlap=2)
    codec.decode(np.zeros((3, 20, 8, 4), np.float32))
    assert seen == [(1, 8, 8, 4)], "one program for all tiles of all images"
    assert codec.decoded_at_once((20, 8, 4)) == (8, 8)


def test_an_overlap_of_more_than_half_a_tile_is_refused():
    with pytest.raises(ValueError, match="overlap=5 must lie between 0 and half of config.latent.tile=8"):
        codec_of(tile=8, overlap=5)
