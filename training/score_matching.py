"""Denoising score matching for every process and prediction.

The network sees x_t = alpha(t) x0 + sigma(t) z. Whatever it predicts (config.model.predicts: score, eps, x0, v or both)
is turned into the noise: the published continuous loss ||sigma(t) s(x_t, t) + z||^2 (Song et al. 2021, with lambda =
sigma^2) is the squared error of eps = -sigma s. The errors of the others are multiples of it at every t, so that a
weighting is all there is to choose. Discrete models are trained on their own levels with the same formula:
sigma^2 ||s - target||^2 for VE ladders, ||eps - z||^2 for DDPM chains.
"""

import dataclasses

import jax
import jax.numpy as jnp

from array_types import Image, Keys, Labels, PerImage
from models.denoiser import Denoiser
from sde_lib import GaussianSDE

WEIGHTINGS = ("eps", "snr", "constant", "snr_trunc", "v", "likelihood", "edm")
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
    alpha, sigma = denoiser.signal(t), denoiser.std(t)
    x = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * z
    eps = -sigma[:, None, None, None] * denoiser.score(x, t)
    squared = jnp.square(eps - z)
    per_image = squared.mean((1, 2, 3)) if settings.reduce_mean else 0.5 * squared.sum((1, 2, 3))
    return weight(settings, alpha, sigma, sde.diffusion_squared(t)) * per_image


def told_classes(classes: Labels, keys: Keys, dropout: float, null_class: int) -> Labels:
    """The class that the network is told of each image, [b]: its own, or with probability `dropout` the one for none.

    A network trained so can be guided without a classifier (Ho and Salimans 2022, algorithm 1). `keys` are those of
    `loss`, which uses their children 0 and 1; a latent is drawn by child 2.
    """
    left_out = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 3), dropout))(keys)
    return jnp.where(left_out, null_class, classes)


def weight(settings: ScoreMatching, alpha: PerImage, sigma: PerImage, diffusion_squared: PerImage) -> PerImage:
    """What multiplies the squared error of eps, [b]. With s = sigma/alpha and snr = 1/s^2:

    * "eps", "snr": 1, which is snr on the error of x0;
    * "constant": s^2, the error of x0 itself;
    * "snr_trunc": max(1, s^2), which is max(snr, 1) on the error of x0 (Salimans and Ho 2022);
    * "v": ((alpha^2 + sigma^2)/alpha)^2, the error of v = alpha eps - sigma x0; on x0 it is snr + 1 for VP;
    * "likelihood": g^2/sigma^2, that is g^2 on the error of the score (Song et al. 2021);
    * "edm": EDM's lambda on the error of x0, which gives the wrapped network unit loss at every noise level at the
      start (Karras et al. 2022): lambda s^2 = (s^2 + sigma_data^2)/sigma_data^2 with s in [-1, 1] units.
    """
    s = sigma / alpha
    if settings.weighting == "constant":
        return s**2
    if settings.weighting == "snr_trunc":
        return jnp.maximum(s**2, 1)
    if settings.weighting == "v":
        return ((alpha**2 + sigma**2) / alpha) ** 2
    if settings.weighting == "likelihood":
        return diffusion_squared / sigma**2
    if settings.weighting == "edm":
        s = s * (1 if settings.centered else 2)
        return (s**2 + settings.sigma_data**2) / settings.sigma_data**2
    return jnp.ones_like(s)
