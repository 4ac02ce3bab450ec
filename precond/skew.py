"""Skew-symmetric operators S (S^T = -S): circulation added to the drift, default off.

The drift (M M^T + omega S) grad log p with noise M z still has p stationary: the extra term adds div(p S grad log p) =
div(S grad p) = sum S_ij d_i d_j p = 0 because S is constant and skew. It moves probability along the level sets of p.
A discrete step of length eps on a Gaussian mode of variance V, on which M M^T is m^2 and S rotates at rate w, has
stationary variance V / (1 - eps (m^4 + w^2) / (2 m^2 V)): an S that commutes with the covariance only adds
discretisation error. It can help only by exchanging energy between modes that mix at different rates.

Every operator is a callable pytree on images [b, h, w, c], real to real; boundaries are periodic.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from array_types import Image, PerImage, Scalar
from precond.base import Coefficient, Preconditioner, Prepared, per_image

HalfPlane = Float[Array, "h k d"]  # k = w // 2 + 1; d = c, or 1 for all channels alike


@runtime_checkable
class SkewOperator(Protocol):
    """A linear map with <u, S v> = -<S u, v>."""

    def __call__(self, x: Image, /) -> Image: ...


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shift:
    """(S x)_w = (x_{w+1} - x_{w-1}) / 2 along an image axis (1: height, 2: width): transport. No FFT.

    Its Fourier multiplier is i sin(2 pi k / n); the transpose of the shift x_{w+1} is x_{w-1}.
    """

    axis: int

    def __call__(self, x: Image) -> Image:
        return (jnp.roll(x, -1, self.axis) - jnp.roll(x, 1, self.axis)) / 2


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ChannelRotation:
    """(S x)_c = (x_{c-1} - x_{c+1}) / sqrt(3), cyclic: for RGB the cross product with the grey axis. No FFT.

    Zero with fewer than three channels.
    """

    def __call__(self, x: Image) -> Image:
        return (jnp.roll(x, 1, -1) - jnp.roll(x, -1, -1)) / math.sqrt(3)


class OddMultiplier(NamedTuple):
    """S = F^-1 diag(i s) F with s real and odd, s[-k] = -s[k], so 0 wherever k = -k. 2 real FFTs."""

    s: HalfPlane

    def __call__(self, x: Image) -> Image:
        spectrum = 1j * self.s[None] * jnp.fft.rfft2(x, axes=(1, 2))
        return jnp.fft.irfft2(spectrum, s=x.shape[1:3], axes=(1, 2))


class Sandwich(NamedTuple):
    """S = M K M^T for a skew K: K in the coordinates y = M^-1 x, so that omega means one relative strength for all M.

    Costs the transforms of `apply` and of K.
    """

    preconditioner: Preconditioner
    inner: SkewOperator

    def __call__(self, x: Image) -> Image:
        return self.preconditioner.apply_noise(self.inner(self.preconditioner.apply_transpose(x)))


class Commutator(NamedTuple):
    """S = M^T - M = D_s G - G D_s, the commutator of the pixel mask D_s and the filter G = F^-1 D_f F. 4 real FFTs.

    Zero unless M has both masks.
    """

    preconditioner: Preconditioner

    def __call__(self, x: Image) -> Image:
        return self.preconditioner.apply_transpose(x) - self.preconditioner.apply_noise(x)


class Antisymmetric(NamedTuple):
    """S = R - R^T for any linear R on images; JAX derives the transpose. R is a pytree (`jax.tree_util.Partial`)."""

    linear: SkewOperator

    def __call__(self, x: Image) -> Image:
        (transposed,) = jax.linear_transpose(self.linear, x)(x)
        return self.linear(x) - transposed


class SkewedStep(NamedTuple):
    """A prepared step with circulation. S stays out of `norms`, so that omega does not change the step length."""

    symmetric: Prepared
    circulation: Image

    def norms(self) -> tuple[PerImage, PerImage]:
        return self.symmetric.norms()

    def combine(self, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        drift = per_image(drift_coef, self.circulation) * self.circulation
        return self.symmetric.combine(drift_coef, noise_coef) + drift


class Skewed(NamedTuple):
    """A preconditioner whose steps drift along (M M^T + omega S) g. `apply` stays M M^T, the symmetric part."""

    preconditioner: Preconditioner
    skew: SkewOperator
    omega: Scalar

    def apply_noise(self, z: Image) -> Image:
        return self.preconditioner.apply_noise(z)

    def apply_transpose(self, y: Image) -> Image:
        return self.preconditioner.apply_transpose(y)

    def apply(self, g: Image) -> Image:
        return self.preconditioner.apply(g)

    def inverse(self, v: Image) -> Image:
        return self.preconditioner.inverse(v)

    def prepare(self, drift_input: Image, noise: Image) -> SkewedStep:
        circulation = per_image(self.omega, drift_input) * self.skew(drift_input)
        return SkewedStep(self.preconditioner.prepare(drift_input, noise), circulation)

    def update(self, drift_input: Image, noise: Image, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        symmetric = self.preconditioner.update(drift_input, noise, drift_coef, noise_coef)
        return symmetric + per_image(drift_coef, drift_input) * per_image(self.omega, drift_input) * self.skew(
            drift_input
        )


def hilbert(axis: int, height: int, width: int) -> OddMultiplier:
    """The Hilbert transform along an image axis: s = sign(k), every oscillation turned by 90 degrees at one rate."""
    size = height if axis == 1 else width
    sign = np.sign(np.fft.fftfreq(size))
    sign[2 * np.arange(size) % size == 0] = 0  # zero frequency and Nyquist mirror onto themselves
    plane = np.broadcast_to(sign[:, None] if axis == 1 else sign[None, :], (height, width))
    return OddMultiplier(jnp.float32(plane[:, : width // 2 + 1, None]))
