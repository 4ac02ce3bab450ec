"""The exact density of images under the probability flow (Song et al. 2021, section 4.3), for likelihoods.

The flow dy/dlam = D(y, s) - y, lam = -log s, carries an image to noise of known density. On the way log p changes by
the divergence of the slope,

    log p(y at s_start) = log p(y at s_end) + integral over lam of (tr dD/dy - d),    d = h w c

and p(y at s_end) is the prior's. The trace is estimated by z . (dD/dy z), z of random signs and fixed along the way,
which is unbiased (Hutchinson 1990; Grathwohl et al. 2019) and exact where dD/dy is diagonal. The integral is solved
with the image as one more channel of it, under the same error control.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Keys, PerImage
from sampling import adaptive
from sampling.adaptive import Adaptive
from sampling.denoising import Denoiser

FIRST_TIME = 1e-5  # SDE time of an image, as published: there is no density without noise


class Density(NamedTuple):
    """What the flow says of each image."""

    log_density: PerImage  # natural logarithm; NaN where the solver did not come to the end
    calls: jax.Array  # network calls, each with a derivative along z, int32 [b]


def dequantise(pixels: jax.Array, keys: Keys, low: float, high: float) -> Image:
    """uint8 [b, h, w, c] -> (pixels + u)/256 in [low, high], u uniform in [0, 1) of each image's key."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, pixels.shape[1:], jnp.float32))(keys)
    return low + (high - low) * (pixels.astype(jnp.float32) + noise) / 256


def random_signs(keys: Keys, shape: tuple[int, ...]) -> Image:
    """z of each image's key: +1 or -1, [b, h, w, c] float32."""
    return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.float32))(keys)


def log_density(
    settings: Adaptive, denoiser: Denoiser, y: Image, signs: Image, s_start: float, s_end: float, prior_scale: float
) -> Density:
    """log p of y [b, h, w, c] as states at noise scale s_start > 0, with `signs` [b, h, w, c] for the trace. Traceable.

    At s_end > s_start the states are taken to be normal of mean 0 and standard deviation prior_scale.
    """

    def with_divergence(state: Image, s: PerImage) -> Image:
        # `adaptive.slope` takes the state away again, from the last channel too.
        y, integral = state[..., :-1], state[..., -1:]
        x0, along = jax.jvp(lambda y: denoiser(y, s).astype(y.dtype), (y,), (signs,))
        divergence = jnp.sum(signs * along, axis=-1, keepdims=True) - y.shape[-1]
        return jnp.concatenate([x0, integral + divergence], axis=-1)

    start = jnp.concatenate([y, jnp.zeros_like(y[..., :1])], axis=-1)
    end, calls = adaptive.transport(settings, with_divergence, start, s_start, s_end)
    at_end = -0.5 * (end[..., :-1] / prior_scale) ** 2 - np.log(prior_scale) - 0.5 * np.log(2 * np.pi)
    return Density(jnp.sum(at_end, axis=(1, 2, 3)) + jnp.sum(end[..., -1], axis=(1, 2)), calls)


def bits_per_dim(log_density: np.ndarray, dimensions: int, low: float, high: float) -> np.ndarray:
    """Bits a dimension that 256 levels between low and high cost, from densities in the data range.

    A level is (high - low)/256 wide: the offset is 8 bits for [0, 1] and 7 for [-1, 1].
    """
    return -np.asarray(log_density, np.float64) / (dimensions * np.log(2)) + 8 - np.log2(high - low)
