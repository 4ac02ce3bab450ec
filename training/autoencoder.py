"""Training of a codec: images come back through latents that stay close to standard normal noise.

A variational autoencoder (Kingma and Welling 2014) has an encoder q(z | x) = N(m, diag v), a decoder p(x | z) and the
prior p(z) = N(0, I), and lowers a bound on -log p(x):

  E_q[-log p(x | z)] + KL(q(z | x) || p(z)),    KL = 1/2 sum (m^2 + v - 1 - log v).

Under a Laplace density of scale b the first term is |x - x'|_1 / b and a constant, x' = decode(z); under a Gaussian one
of variance u it is |x - x'|_2^2 / (2 u) and a constant. So for the d values of an image

  mean |x - x'| + w KL / d    or    mean (x - x')^2 + w KL / d

is that bound times b/d, w = b, or times 2 u/d, w = 2 u: the weight says how large an error counts as noise. A latent
keeps a variance v of its own as far as the decoder does not mind, and what is worth less than its share of KL is left
out. Published codecs of latent diffusion (Rombach et al. 2022) take a w of 1e-6 and a perceptual distance beside the
first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from array_types import Image, Keys, PerImage
from models.autoencoder import sample_moments

DISTANCES = ("l1", "l2")
Coder = Callable[[Any, Any], Any]  # (params, images) -> moments, or (params, latents) -> images


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """Settings (config.autoencoder)."""

    distance: str = "l1"
    kl_weight: float = 1e-6
    perceptual_weight: float = 1.0

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise ValueError(f"config.autoencoder.distance={self.distance!r} is unknown; choose one of {DISTANCES}.")
        if self.kl_weight < 0 or self.perceptual_weight < 0:
            raise ValueError(
                f"config.autoencoder.kl_weight={self.kl_weight:g} and config.autoencoder.perceptual_weight="
                f"{self.perceptual_weight:g} must not be negative."
            )


def kl_divergence(moments: jax.Array) -> PerImage:
    """KL(N(m, v) || N(0, I)) in nats, [b], of moments [b, h, w, 2c]: means m and log variances log v."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3))


def draw(moments: jax.Array, keys: Keys) -> jax.Array:
    """One latent [b, h, w, c] of each of the Gaussians with these moments [b, h, w, 2c]; one key an image, [b]."""
    shape = (*moments.shape[1:3], moments.shape[3] // 2)
    return sample_moments(moments, jax.vmap(lambda key: jax.random.normal(key, shape, moments.dtype))(keys))


def reconstruction(distance: str, x: Image, found: Image) -> PerImage:
    """Mean over the values of each image of |x - found| ("l1") or of its square ("l2"), [b]."""
    gap = x - found
    return (jnp.abs(gap) if distance == "l1" else jnp.square(gap)).mean((1, 2, 3))


def loss(
    settings: AutoencoderLoss,
    encode: Coder,
    decode: Coder,
    params: Any,
    x: Image,
    keys: Keys,
    perceptual: Callable[[Image, Image], PerImage] | None = None,
) -> PerImage:
    """The loss of each image, [b]: one call of the encoder, one of the decoder.

    Args:
      encode: `(params, images) -> moments [b, h/f, w/f, 2c]`.
      decode: `(params, latents [b, h/f, w/f, c]) -> images`.
      x: images [b, h, w, 3] in [-1, 1].
      keys: one key an image, [b], for its latent.
      perceptual: another distance of images, [b], to be added; None for none.
    """
    moments = encode(params, x)
    found = decode(params, draw(moments, keys))
    total = reconstruction(settings.distance, x, found)
    total += settings.kl_weight * kl_divergence(moments) / (x.size // len(x))
    return total if perceptual is None else total + settings.perceptual_weight * perceptual(x, found)
