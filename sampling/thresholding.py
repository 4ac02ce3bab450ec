"""Thresholding of the x0 estimate: keeping it in the data range before a solver uses it.

A wrapper around the denoiser, so that it works with every solver and changes none.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from array_types import Image, Scalar
from sampling.denoising import Denoiser


def static_threshold(x0: Image, low: float, high: float) -> Image:
    """Clips x0 to the data range [low, high]."""
    return jnp.clip(x0, low, high)


def dynamic_threshold(x0: Image, low: float, high: float, quantile: float) -> Image:
    """Shrinks each image whose `quantile` of distances from mid-range leaves the range, after clipping it there.

    Saharia et al. (2022), "Photorealistic text-to-image diffusion models with deep language understanding", written for
    any range [low, high]: in units of half the range around its middle, q is the quantile of |x0| over an image and
    not less than 1; the result is clip(x0, -q, q)/q.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    unit = (x0 - middle) / half
    bound = jnp.quantile(jnp.abs(unit.reshape(len(unit), -1)), quantile, axis=1)
    bound = jnp.maximum(bound, 1.0)[:, None, None, None]
    return middle + half * jnp.clip(unit, -bound, bound) / bound


@functools.partial(jax.tree_util.register_dataclass, data_fields=["denoiser"], meta_fields=["low", "high", "quantile"])
@dataclasses.dataclass(frozen=True)
class Thresholded:
    """A denoiser whose estimates stay in [low, high]: clipped (`quantile` 1.0 means static), or dynamic below 1."""

    denoiser: Denoiser
    low: float
    high: float
    quantile: float = 1.0

    def __call__(self, y: Image, s: Scalar) -> Image:
        x0 = self.denoiser(y, s)
        if self.quantile == 1.0:
            return static_threshold(x0, self.low, self.high)
        return dynamic_threshold(x0, self.low, self.high, self.quantile)


def thresholded(denoiser: Denoiser, kind: str, centered: bool, quantile: float = 0.995) -> Denoiser:
    """The denoiser with thresholding of this kind: "none", "static" or "dynamic".

    centered: the data range is [-1, 1], else [0, 1]. Raises ValueError for another kind or a quantile outside (0, 1).
    """
    low = -1.0 if centered else 0.0
    if kind == "none":
        return denoiser
    if kind == "static":
        return Thresholded(denoiser, low, 1.0)
    if kind != "dynamic":
        raise ValueError(f'config.sampling.threshold={kind!r} is unknown; choose one of ["dynamic", "none", "static"].')
    if not 0 < quantile < 1:
        raise ValueError(f"config.sampling.threshold_quantile={quantile} must lie between 0 and 1; 0.995 is usual.")
    return Thresholded(denoiser, low, 1.0, quantile)
