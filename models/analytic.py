"""A closed-form model: a mixture of K images with one coloured residual, whose denoiser is exact at any size.

x0 = mu_i + r, i uniform over K images, r Gaussian and stationary with variance v_k at frequency k (of the orthonormal
Fourier transform). At noise scale s each component is Gaussian with variance V_k = v_k + s^2 there, so that

    E[x0 | y] = M + v/V (y - M),    M = sum_i p_i mu_i,    log p_i = <y, mu_i>_V - <mu_i, mu_i>_V / 2 + const

with <a, b>_V = sum_k a_k conj(b_k) / V_k. Every sampler has an exact answer on it, and high resolutions can be
measured without weights.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, PerImage
from sde_lib import GaussianSDE


class Mixture(NamedTuple):
    """The parameters. Means and variances at the frequencies of `rfft2` over h and w, zero frequency at [0, 0].

    Attributes:
      means: orthonormal Fourier coefficients of the K images, complex [K, h, w // 2 + 1, c].
      variance: v_k of the residual, in (units of the data range)^2, [h, w // 2 + 1, c].
    """

    means: jax.Array
    variance: jax.Array


def mixture(images: np.ndarray, variance: np.ndarray) -> Mixture:
    """From images [K, h, w, c] in the data range and the residual's variance at all frequencies, [h, w, c]."""
    images, half = np.asarray(images, np.float64), images.shape[2] // 2 + 1
    if variance.shape != images.shape[1:] or not (variance > 0).all():
        raise ValueError(
            f"The residual variance is {variance.shape} and the images {images.shape[1:]}; it must be positive at "
            "every frequency of one image."
        )
    means = np.fft.rfft2(images, axes=(1, 2), norm="ortho")
    return Mixture(jnp.asarray(means, jnp.complex64), jnp.asarray(variance[:, :half], jnp.float32))


@dataclasses.dataclass(frozen=True)
class Analytic:
    """`(params, x [b, h, w, c], t [b]) -> E[x0 | x]`, told SDE times of `sde`; counted as 1 network call."""

    sde: GaussianSDE

    def __call__(self, params: Mixture, x: Image, t: PerImage) -> Image:
        shape = x.shape[1:3]
        y = x / self.sde.alpha(t)[:, None, None, None]
        s = self.sde.noise_scale(t)[:, None, None, None]
        frequencies = jnp.fft.rfft2(y, axes=(1, 2), norm="ortho")
        total = params.variance[None] + s**2
        mean = self._mean(params, frequencies, total, shape[1])
        x0 = mean + params.variance[None] / total * (frequencies - mean)
        return jnp.fft.irfft2(x0, s=shape, axes=(1, 2), norm="ortho").astype(x.dtype)

    def _mean(self, params: Mixture, frequencies: jax.Array, total: jax.Array, width: int) -> jax.Array:
        """M, the mean image given y, at every frequency, [b or 1, h, w // 2 + 1, c]."""
        if len(params.means) == 1:
            return params.means
        weight = _column_counts(width) / total
        with_y = jnp.einsum("bhwc,bhwc,khwc->bk", weight, frequencies, params.means.conj()).real
        with_itself = jnp.einsum("bhwc,khwc->bk", weight, jnp.abs(params.means) ** 2)
        return jnp.einsum("bk,khwc->bhwc", jax.nn.softmax(with_y - with_itself / 2, axis=1), params.means)


def _column_counts(width: int) -> np.ndarray:
    """How many frequencies of the full plane a column of the half plane stands for, [1, 1, w // 2 + 1, 1]."""
    columns = np.arange(width // 2 + 1)
    return np.where((columns == 0) | (2 * columns == width), 1.0, 2.0)[None, None, :, None]
