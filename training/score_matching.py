"""Denoising score matching for every process and prediction.

The network sees x_t = alpha(t) x0 + sigma(t) z and is scored on the noise: the published continuous loss
||sigma(t) s(x_t, t) + z||^2 (Song et al. 2021, with lambda = sigma^2) is the squared error of eps = -sigma s. Other
weightings multiply it. Discrete models are trained on their own levels with the same formula: sigma^2 ||s - target||^2
for VE ladders, ||eps - z||^2 for DDPM chains.
"""

import dataclasses

import jax
import jax.numpy as jnp

from array_types import Image, Keys, PerImage
from models.denoiser import Denoiser
from sde_lib import GaussianSDE

WEIGHTINGS = ("eps", "likelihood", "edm")
NOISE_LEVELS = ("uniform", "lognormal_mix")


@dataclasses.dataclass(frozen=True)
class ScoreMatching:
    """Settings of the loss (config.training and config.model); hashable, so that a jitted loss can close over them."""

    weighting: str = "eps"
    noise_levels: str = "uniform"
    lognormal_mean: float = -1.2  # of log noise scale, in units of the data range
    lognormal_std: float = 1.2
    lognormal_share: float = 0.5
    reduce_mean: bool = False
    sigma_data: float = 0.5
    centered: bool = False
    end_time: float = 1e-5

    def __post_init__(self):
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"config.training.weighting={self.weighting!r} is unknown; choose one of {WEIGHTINGS}.")
        if self.noise_levels not in NOISE_LEVELS:
            raise ValueError(
                f"config.training.noise_levels={self.noise_levels!r} is unknown; choose one of {NOISE_LEVELS}."
            )


def sample_time(settings: ScoreMatching, sde: GaussianSDE, told: str, key: jax.Array) -> jax.Array:
    """One SDE time in [end_time, 1] for one training image; a level of the training grid for discrete models."""
    which, where = jax.random.split(key)
    if told in ("level", "fractional_level"):
        return jax.random.randint(where, (), 0, sde.num_scales) / (sde.num_scales - 1)
    low, high = sde.noise_scale(jnp.float32(settings.end_time)), sde.noise_scale(jnp.float32(1.0))
    if settings.noise_levels == "uniform":
        return jax.random.uniform(where, (), minval=settings.end_time, maxval=1.0)
    log_scale = settings.lognormal_mean + settings.lognormal_std * jax.random.normal(where)
    log_uniform = jax.random.uniform(where, (), minval=jnp.log(low), maxval=jnp.log(high))
    log_scale = jnp.where(jax.random.uniform(which) < settings.lognormal_share, log_scale, log_uniform)
    return sde.time(jnp.exp(jnp.clip(log_scale, jnp.log(low), jnp.log(high))))


def loss(settings: ScoreMatching, denoiser: Denoiser, x0: Image, keys: Keys) -> PerImage:
    """The loss of each image, [b].

    Args:
      denoiser: the network under training; its `params` are what gradients are taken of.
      x0: images in the model's data range, [b, h, w, c].
      keys: one key an image, [b], so that the loss does not depend on how the batch is split over devices.
    """
    sde = denoiser.sde
    key_t, key_z = jax.vmap(jax.random.split, out_axes=1)(keys)
    t = jax.vmap(lambda key: sample_time(settings, sde, denoiser.told, key))(key_t)
    z = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(key_z)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    if denoiser.told == "fractional_level":
        sigma = denoiser.std(t)  # the discrete chain's own marginals
        alpha = jnp.sqrt(1 - sigma**2)
    x = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * z
    eps = -sigma[:, None, None, None] * denoiser.score(x, t)
    squared = jnp.square(eps - z)
    per_image = squared.mean((1, 2, 3)) if settings.reduce_mean else 0.5 * squared.sum((1, 2, 3))
    return weight(settings, sde, t) * per_image


def weight(settings: ScoreMatching, sde: GaussianSDE, t: jax.Array) -> jax.Array:
    """What multiplies the squared error of eps.

    "eps": 1. "likelihood": g^2/sigma^2, that is g^2 on the error of the score. "edm": EDM's lambda on the error of x0,
    which gives the wrapped network unit loss at every noise level at the start (Karras et al. 2022): with noise scale
    s in [-1, 1] units, lambda s^2 = (s^2 + sigma_data^2)/sigma_data^2 times the squared error of eps.
    """
    if settings.weighting == "likelihood":
        return sde.diffusion_squared(t) / sde.sigma(t) ** 2
    if settings.weighting == "edm":
        s = sde.noise_scale(t) * (1 if settings.centered else 2)
        return (s**2 + settings.sigma_data**2) / settings.sigma_data**2
    return jnp.ones_like(t)
