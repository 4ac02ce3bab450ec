"""Bits a dimension of images under a model, by score_sde's protocol (`sampling.likelihood`)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders.grids import prior_scale
from builders.latent import refuse
from builders.model import Model
from sampling import likelihood
from sampling.adaptive import Adaptive
from sampling.base import TimeGrid


class Likelihood(NamedTuple):
    """Of each image, [n]."""

    bits_per_dim: np.ndarray  # float64; NaN where the flow did not come to its end
    calls: np.ndarray  # network calls, each with a derivative


def check(config: ConfigDict, told: str) -> None:
    """ValueError for a model or a setting under which the flow has no density that can be computed."""
    if config.guidance.kind != "none":
        raise ValueError(
            f"config.guidance.kind={config.guidance.kind!r} changes the flow, which then is no model's density; leave "
            "it out with --mode=likelihood."
        )
    refuse(config, "--mode=likelihood", "A decoder makes a density of latents none of images.")
    if config.guidance.cfg_scale != 1:
        raise ValueError(
            f"config.guidance.cfg_scale={config.guidance.cfg_scale:g} changes the flow, which then is no model's "
            "density; leave it at 1 with --mode=likelihood."
        )
    if config.student.method:
        raise ValueError(
            f"These are the weights of a student (config.student.method={config.student.method!r}), which jumps and "
            "has no flow; name the weights of its teacher by --checkpoint."
        )
    if config.model.super_resolution:
        raise ValueError("A network that enlarges (config.model.super_resolution) has no likelihood of images alone.")
    if told == "level":
        raise ValueError(
            "This network was trained on separate noise levels (config.model.continuous=False), between which its flow "
            "is not defined; the likelihood needs a model trained on continuous noise."
        )


def evaluate(model: Model, pixels: np.ndarray, labels: Sequence[int] | np.ndarray | None = None) -> Likelihood:
    """The likelihood of uint8 images [n, h, w, c], solved by config.sampling.ode, config.sampling.microbatch at a time.

    Image i is dequantised with uniform noise and has signs of key(config.seed) folded with i: its number does not
    depend on how many others are scored.

    Args:
      labels: the class of each, for a network that is told one.

    Raises ValueError as `check` does, and for images of another shape.
    """
    config = model.config
    check(config, model.denoiser.told)
    if pixels.ndim != 4 or pixels.shape[1:] != model.shape or pixels.dtype != np.uint8 or not len(pixels):
        raise ValueError(
            f"The model's images have shape {model.shape}, these {pixels.shape} of {pixels.dtype}; give uint8 "
            "[n, h, w, c] of that shape."
        )
    if (labels is None) == bool(config.data.num_classes) or (labels is not None and len(labels) != len(pixels)):
        raise ValueError(f"Give one label an image for a network that is told classes, and none for another: {labels}.")
    settings, count = Adaptive(**config.sampling.ode.to_dict()), config.sampling.microbatch
    bits, calls = [], []
    for start in range(0, len(pixels), count):
        places = np.minimum(start + np.arange(count), len(pixels) - 1)  # the last is padded: nothing compiles twice
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(config.seed), i))(jnp.asarray(places))
        given = {} if labels is None else {"classes": jnp.asarray(np.asarray(labels)[places])}
        denoiser = model.denoiser.given(**given)
        found = _compiled(settings, model.data_range, denoiser, jnp.asarray(pixels[places]), keys)
        bits.append(likelihood.bits_per_dim(np.asarray(found.log_density), pixels[0].size, *model.data_range))
        calls.append(np.asarray(found.calls))
    return Likelihood(np.concatenate(bits)[: len(pixels)], np.concatenate(calls)[: len(pixels)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    settings: Adaptive, ends: tuple[float, float], denoiser: Any, pixels: jax.Array, keys: jax.Array
) -> likelihood.Density:
    """The density of dequantised images x, taken as states of the process at `likelihood.FIRST_TIME`."""
    sde = denoiser.sde
    alpha = float(sde.alpha(np.float64(likelihood.FIRST_TIME)))
    s_start, s_end = (float(sde.noise_scale(np.float64(t))) for t in (likelihood.FIRST_TIME, 1.0))
    prior = prior_scale(sde, TimeGrid(np.array([s_end]), np.array([s_end])))
    noise_keys, sign_keys = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in range(2))
    x = likelihood.dequantise(pixels, noise_keys, *ends)
    signs = likelihood.random_signs(sign_keys, x[0].shape)
    found = likelihood.log_density(settings, denoiser, x / alpha, signs, s_start, s_end, prior)
    # The density of x = alpha y is that of y over alpha in each dimension.
    return found._replace(log_density=found.log_density - x[0].size * np.log(alpha))
