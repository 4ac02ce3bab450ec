"""Inverse problems: an observation A x0 + noise_std n guides the sampler towards images that explain it.

| kind | log p(observation given y) |
|---|---|
| `Direct` | N(A y, noise_std^2 + s^2 A A^T): what y itself says of x0; no network, and its flow is exact |
| `PiGDM` | N(A x0(y), noise_std^2 + r^2 A A^T), r^2 the variance of x0 given y, through the network |
| `dps` | -norm(observation - A x0(y)), through the network |
| `Projection` | none: the observed part is replaced after each step, at its own noise level |

Each works for every `operators.LinearOperator`, in y = x/alpha and s = sigma/alpha.
"""

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, PerImage, Scalar
from sampling.denoising import Denoiser
from sampling.guidance import OnEstimate, estimate
from sampling.operators import LinearOperator, Observed, positive, pseudo_inverse


def _log1p(x: Any) -> Any:
    """log(1 + x), -inf and not NaN where rounding takes x below -1: an exact observation at s = 0."""
    return jnp.log1p(jnp.maximum(x, -1.0))


class Direct(NamedTuple):
    """Given y = x0 + s n, the observation is N(A y, noise_std^2 I + s^2 A A^T) for every x0 a priori alike."""

    operator: LinearOperator
    observed: Observed  # or [1, ...] for all images
    noise_std: Any = 0.0  # of the observation, in units of the data range

    def __call__(self, y: Image, s: Scalar) -> Image:
        """The gradient A^T (noise_std^2 + s^2 A A^T)^-1 (observed - A y)."""
        residual = self.observed - self.operator.apply(y)
        scaled = self.operator.gram(lambda lam: 1 / self._variance(lam, s), residual)
        return self.operator.transpose(scaled)

    def _variance(self, lam: Any, s: Any) -> Any:
        return self.noise_std**2 + s**2 * positive(lam)

    def flow(self, y: Image, s: Scalar, s_next: Scalar, weight: Scalar) -> Image:
        """The exact solution of dy/ds = -weight s grad log p from s to s_next <= s; stable for any step.

        Along each left singular direction of A, with eigenvalue lam of A A^T, the residual r = observed - A y obeys
        dr/ds = weight lam s r/(lam s^2 + noise_std^2), so it is multiplied by

            ((lam s_next^2 + noise_std^2)/(lam s^2 + noise_std^2))^(weight/2),

        and y moves by A^T u with A A^T u = what r lost; the null space of A stays as it is.
        """

        def lost(lam: Any) -> Any:
            log_ratio = _log1p(positive(lam) * (s_next**2 - s**2) / self._variance(lam, s))
            return -jnp.expm1(weight / 2 * log_ratio) / positive(lam)

        residual = self.observed - self.operator.apply(y)
        return y + self.operator.transpose(self.operator.gram(lost, residual))

    def curvature(self, s: Any) -> Any:
        """The largest eigenvalue of -Hessian log p at s > 0 (NumPy)."""
        lam, noise_std = float(self.operator.largest()), float(self.noise_std)
        return lam / (lam * np.asarray(s) ** 2 + noise_std**2)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["denoiser", "operator", "observed", "noise_std", "data_std"],
    meta_fields=["through_network"],
)
@dataclasses.dataclass(frozen=True)
class PiGDM:
    """Song et al. (2023), "Pseudoinverse-guided diffusion models for inverse problems", with observation noise.

    x0 given y is taken as N(x0(y), r^2 I), r^2 = s^2 d^2/(s^2 + d^2) for data of standard deviation d = `data_std` (1
    in the paper), and differentiated through the network.
    """

    denoiser: Denoiser
    operator: LinearOperator
    observed: Any  # [b, i, j, k]
    noise_std: Any = 0.0
    data_std: Any = 1.0
    through_network: bool = True

    network_calls: ClassVar[int] = 1
    gradient_calls: ClassVar[int] = 1

    def __call__(self, y: Image, s: Scalar) -> Image:
        return self.x0_and_gradient(y, s)[1]

    def x0_and_gradient(self, y: Image, s: Scalar) -> tuple[Image, Image]:
        """x0(y, s), and (dx0/dy)^T A^T (noise_std^2 + r^2 A A^T)^-1 (observed - A x0)."""
        x0, pull_back = estimate(self.denoiser, y, s, self.through_network)
        variance = s**2 * self.data_std**2 / (s**2 + self.data_std**2)
        residual = self.observed - self.operator.apply(x0)
        scaled = self.operator.gram(lambda lam: 1 / (self.noise_std**2 + variance * positive(lam)), residual)
        return x0, pull_back(self.operator.transpose(scaled))

    def flow(self, y: Image, s: Scalar, s_next: Scalar, weight: Scalar) -> Image:
        """One exponential step of dy/ds = -weight s grad log p with x0 and its derivative frozen at s: order 1, stable.

        If dx0/dy were the identity, the residual of A A^T-eigenvalue lam would be multiplied by exp(-weight I), I the
        integral of lam s/(noise_std^2 + r^2 lam) over [s_next, s], which has the closed form below. The step takes that
        much of the residual away, along the gradient's own direction.
        """
        x0, pull_back = estimate(self.denoiser, y, s, self.through_network)
        v, q = self.data_std**2, self.noise_std**2

        def lost(lam: Any) -> Any:
            lam = positive(lam)
            c = lam * v + q
            # The integral in u = s^2 of lam (v + u)/(2 (c u + q v)).
            log_ratio = _log1p(c * (s_next**2 - s**2) / (c * s**2 + q * v))
            integral = lam / (2 * c) * (s**2 - s_next**2 - lam * v**2 / c * log_ratio)
            return -jnp.expm1(-weight * integral) / lam

        residual = self.observed - self.operator.apply(x0)
        return y + pull_back(self.operator.transpose(self.operator.gram(lost, residual)))


class ResidualNorm(NamedTuple):
    """log p = -norm(observed - A x0) of each image."""

    operator: LinearOperator
    observed: Observed

    def __call__(self, x0: Image, s: Scalar) -> PerImage:
        square = jnp.sum((self.observed - self.operator.apply(x0)) ** 2, axis=(1, 2, 3))
        return -jnp.sqrt(jnp.maximum(square, jnp.finfo(x0.dtype).tiny))  # so that the gradient at 0 is 0, not NaN


def dps(denoiser: Denoiser, operator: LinearOperator, observed: Observed) -> OnEstimate:
    """Chung et al. (2023), "Diffusion posterior sampling for general noisy inverse problems": the gradient of
    -norm(observed - A x0(y)) through the network. The paper's step size zeta is the schedule's scale."""
    return OnEstimate(denoiser, ResidualNorm(operator, observed))


class Projection(NamedTuple):
    """Replaces the observed part of y by the observation at y's noise scale: A y <- observed + s A n.

    n is the start noise of the image, so that the observed part comes down a straight line from where it began, the
    sampler stays deterministic, and at s = 0 the image explains the observation exactly.
    """

    operator: LinearOperator
    observed: Observed
    noise: Image  # [b, h, w, c], standard normal

    def __call__(self, y: Image, s: Scalar) -> Image:
        return y + pseudo_inverse(self.operator, self.observed - self.operator.apply(y - s * self.noise))
