"""Preconditioners that are diagonal in pixel space, in frequency space, or a product of both.

M = F^-1 diag(freq) F diag(space) with F the 2-D Fourier transform over height and width, a channel at a time (Ma et
al. 2022). Images are real, so half of each spectrum is redundant: transforms are `rfft2`/`irfft2` and only the
half-plane of `freq` is used. That needs an even `freq` (freq[-k] = freq[k]), which also makes the filter symmetric: it
is its own transpose. `precond.diagonal` makes such diagonals from masks.

The diagonals are pytree leaves: other values, for another alpha say, run the same compiled program.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex

from array_types import Image, Mask, PerImage
from precond.base import Coefficient, Pixels, per_image

Spectrum = Complex[Array, "b h k c"]  # rfft2 of images: k = w // 2 + 1


def _spectrum(x: Image) -> Spectrum:
    return jnp.fft.rfft2(x, axes=(1, 2))


def _image(spectrum: Spectrum, width: int) -> Image:
    return jnp.fft.irfft2(spectrum, s=(spectrum.shape[1], width), axes=(1, 2))


def _half(freq: Mask) -> Array:
    """The part of a full-plane diagonal that meets the half-plane spectrum, [1, h, w//2 + 1, c]."""
    return freq[None, :, : freq.shape[1] // 2 + 1]


def _filter(freq: Mask, x: Image) -> Image:
    return _image(_half(freq) * _spectrum(x), x.shape[2])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectra:
    """A prepared step held as half-plane spectra of images that are `width` wide."""

    drift: Spectrum
    noise: Spectrum
    width: int = dataclasses.field(metadata={"static": True})

    def norms(self) -> tuple[PerImage, PerImage]:
        """By Parseval: |y|^2 = sum of |spectrum|^2 / (h w), where a column stands for its mirror image too, except the
        columns that mirror onto themselves: zero and, at even width, Nyquist."""
        columns = np.arange(self.width // 2 + 1)
        weight = np.where((2 * columns) % self.width == 0, 1.0, 2.0) / (self.drift.shape[1] * self.width)

        def norm(spectrum):
            power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
            return jnp.sqrt(jnp.sum(jnp.asarray(weight, power.dtype)[None, None, :, None] * power, axis=(1, 2, 3)))

        return norm(self.drift), norm(self.noise)

    def combine(self, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        drift, noise = per_image(drift_coef, self.drift), per_image(noise_coef, self.noise)
        return _image(drift * self.drift + noise * self.noise, self.width)


class SpacePreconditioner(NamedTuple):
    """M = diag(space): every pixel and channel has its own step size."""

    space: Mask

    def apply_noise(self, z: Image) -> Image:
        return self.space[None] * z

    def apply_transpose(self, y: Image) -> Image:
        return self.space[None] * y

    def apply(self, g: Image) -> Image:
        return jnp.square(self.space)[None] * g

    def inverse(self, v: Image) -> Image:
        return v / self.space[None]

    def prepare(self, drift_input: Image, noise: Image) -> Pixels:
        return Pixels(self.apply(drift_input), self.apply_noise(noise))

    def update(self, drift_input: Image, noise: Image, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        return self.prepare(drift_input, noise).combine(drift_coef, noise_coef)


class FrequencyPreconditioner(NamedTuple):
    """M = F^-1 diag(freq) F: every frequency and channel has its own step size. `freq` is even, full plane."""

    freq: Mask

    def apply_noise(self, z: Image) -> Image:
        return _filter(self.freq, z)

    def apply_transpose(self, y: Image) -> Image:
        return _filter(self.freq, y)

    def apply(self, g: Image) -> Image:
        return _filter(jnp.square(self.freq), g)

    def inverse(self, v: Image) -> Image:
        return _filter(1 / self.freq, v)

    def prepare(self, drift_input: Image, noise: Image) -> Spectra:
        half = _half(self.freq)
        return Spectra(jnp.square(half) * _spectrum(drift_input), half * _spectrum(noise), noise.shape[2])

    def update(self, drift_input: Image, noise: Image, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        return self.prepare(drift_input, noise).combine(drift_coef, noise_coef)


class FourierPreconditioner(NamedTuple):
    """M = F^-1 diag(freq) F diag(space), both masks. `freq` is even, full plane."""

    freq: Mask
    space: Mask

    def apply_noise(self, z: Image) -> Image:
        return _filter(self.freq, self.space[None] * z)

    def apply_transpose(self, y: Image) -> Image:
        return self.space[None] * _filter(self.freq, y)

    def apply(self, g: Image) -> Image:
        return self.apply_noise(self.apply_transpose(g))

    def inverse(self, v: Image) -> Image:
        return _filter(1 / self.freq, v) / self.space[None]

    def prepare(self, drift_input: Image, noise: Image) -> Spectra:
        half, space = _half(self.freq), self.space[None]
        drift = half * _spectrum(space * self.apply_transpose(drift_input))
        return Spectra(drift, half * _spectrum(space * noise), noise.shape[2])

    def update(self, drift_input: Image, noise: Image, drift_coef: Coefficient, noise_coef: Coefficient) -> Image:
        # M is linear, so with known coefficients drift and noise share its transforms: one fewer than by `prepare`.
        drift = per_image(drift_coef, drift_input) * self.apply_transpose(drift_input)
        return self.apply_noise(drift + per_image(noise_coef, noise) * noise)
