"""What a preconditioner is: a constant linear map M on images, and the few actions of it that samplers need.

Langevin dynamics dx = 1/2 M M^T grad log p dt + M dw keeps p stationary for every invertible constant M (the flux of
its Fokker-Planck equation, -1/2 M M^T (p grad log p - grad p), vanishes), so M may be chosen to even out how fast
different image modes mix. Ma et al. (2022), "Accelerating score-based generative models with preconditioned diffusion
sampling", choose M diagonal in frequency and in pixel space.

A sampler's step is a drift and a noise, a M M^T g + b M z. Because a Langevin step length depends on the norms of both
parts, the step comes in two stages: `prepare(g, z)` transforms, `norms()` measures, `combine(a, b)` returns the sum.
The stages share their Fourier transforms; `update` is for when a and b are known beforehand.

Real FFTs over the whole batch:            prepare + combine    update    apply
  identity, pixel mask                             0               0        0
  frequency mask                               2 + 1 = 3           3        2
  frequency and pixel mask                     4 + 1 = 5           4        4
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from array_types import Image, PerImage, PerImageOrAll, Scalar

Coefficient = float | Scalar | PerImageOrAll


def per_image(coefficient: Coefficient, like: jax.Array) -> jax.Array:
    """A number, or one number an image, shaped to multiply images (or their spectra) without widening their dtype."""
    return jnp.reshape(jnp.asarray(coefficient, jnp.finfo(like.dtype).dtype), (-1, 1, 1, 1))


@runtime_checkable
class Prepared(Protocol):
    """M M^T g and M z of one step, in whatever space they are cheapest."""

    def norms(self) -> tuple[PerImage, PerImage]:
        """Each image's L2 norms |M M^T g| and |M z|."""
        ...

    def combine(self, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        """drift_coef M M^T g + noise_coef M z."""
        ...


@runtime_checkable
class Preconditioner(Protocol):
    """A linear map M on images [b, h, w, c], a pytree. Law: apply = apply_noise o apply_transpose."""

    def apply_noise(self, z: Image) -> Image:
        """M z"""
        ...

    def apply_transpose(self, y: Image) -> Image:
        """M^T y"""
        ...

    def apply(self, g: Image) -> Image:
        """M M^T g"""
        ...

    def inverse(self, v: Image) -> Image:
        """M^-1 v"""
        ...

    def prepare(self, drift_input: Image, noise: Image) -> Prepared:
        """The first stage of a step: M M^T drift_input and M noise."""
        ...

    def update(self, drift_input: Image, noise: Image, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        """drift_coef M M^T drift_input + noise_coef M noise"""
        ...


class Pixels(NamedTuple):
    """A prepared step held as images."""

    drift: Image
    noise: Image

    def norms(self) -> tuple[PerImage, PerImage]:
        drift, noise = (jnp.sqrt(jnp.sum(jnp.square(part), axis=(1, 2, 3))) for part in self)
        return drift, noise

    def combine(self, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        return per_image(drift_coef, self.drift) * self.drift + per_image(noise_coef, self.noise) * self.noise


class Identity(NamedTuple):
    """M = I: the sampler without preconditioning."""

    def apply_noise(self, z: Image) -> Image:
        return z

    def apply_transpose(self, y: Image) -> Image:
        return y

    def apply(self, g: Image) -> Image:
        return g

    def inverse(self, v: Image) -> Image:
        return v

    def prepare(self, drift_input: Image, noise: Image) -> Pixels:
        return Pixels(drift_input, noise)

    def update(self, drift_input: Image, noise: Image, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        return self.prepare(drift_input, noise).combine(drift_coef, noise_coef)
