"""config.sampling.method="ode": the adaptive probability flow, and images mapped to their latents and back."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders.grids import noise_range, prior_scale
from builders.model import Model
from builders.solvers import create_thresholded
from sampling import adaptive
from sampling.adaptive import Adaptive
from sampling.base import Sampler, TimeGrid

METHOD = "ode"


def ends(model: Model, config: ConfigDict) -> TimeGrid:
    """The two noise scales between which the flow runs, as a grid of one step."""
    s = np.array(noise_range(config, model.sde))
    return TimeGrid(s, s)


def create_adaptive_sampler(model: Model, config: ConfigDict, record: bool = False) -> Sampler:
    """The flow from the prior, or from start_sigma, to the last noise scale, and from there to the image unless
    config.sampling.noise_removal is False."""
    if config.guidance.kind != "none":
        raise ValueError(
            f"--method=ode takes no guidance (config.guidance.kind={config.guidance.kind!r}); choose --method=stsp2."
        )
    grid, denoiser = ends(model, config), create_thresholded(model, config)
    (s_start, s_end), settings = (float(s) for s in grid.s), Adaptive(**config.sampling.ode.to_dict())
    prior, denoise = prior_scale(model.sde, grid), config.sampling.noise_removal
    return adaptive.create(settings, denoiser, model.shape, s_start, s_end, prior, denoise, record)


class Transported(NamedTuple):
    """What `encode` and `decode` return: NumPy arrays, and the network calls of each, [n]."""

    values: np.ndarray  # latents, or images in the model's data range, [n, h, w, c]
    calls: np.ndarray


def encode(model: Model, images: np.ndarray, labels: Sequence[int] | None = None) -> Transported:
    """Latents of images: where the probability flow begins that ends at each, in units of the prior.

    Args:
      images: in the model's data range, [n, h, w, c]; taken as states at the last noise scale.
      labels: the class of each, for a network that is told one.

    A latent of an image the model thinks likely looks like standard normal noise. Two models, classes or prompts apart,
    `decode(other, encode(model, images).values)` translates. Raises ValueError for images of another shape.
    """
    grid = ends(model, model.config)
    moved = _transport(model, images, labels, grid.s[::-1])
    return moved._replace(values=moved.values / np.float32(prior_scale(model.sde, grid)))


def decode(model: Model, latents: np.ndarray, labels: Sequence[int] | None = None) -> Transported:
    """Images of latents in units of the prior, [n, h, w, c]: the inverse of `encode`, up to the tolerance."""
    grid = ends(model, model.config)
    return _transport(model, latents * np.float32(prior_scale(model.sde, grid)), labels, grid.s)


def _transport(model: Model, y: np.ndarray, labels: Sequence[int] | None, s: np.ndarray) -> Transported:
    """Microbatch by microbatch, the last padded, so that nothing compiles twice."""
    if y.ndim != 4 or y.shape[1:] != model.shape or not len(y):
        raise ValueError(
            f"The model's images have shape {model.shape}, these {y.shape}; give [n, h, w, c] of that shape."
        )
    if (labels is None) == bool(model.config.data.num_classes) or (labels is not None and len(labels) != len(y)):
        raise ValueError(f"Give one label an image for a network that is told classes, and none for another: {labels}.")
    settings, count = Adaptive(**model.config.sampling.ode.to_dict()), model.config.sampling.microbatch
    values, calls = [], []
    for start in range(0, len(y), count):
        places = [min(start + k, len(y) - 1) for k in range(count)]
        given = {} if labels is None else {"classes": jnp.asarray(np.asarray(labels)[places])}
        denoiser = create_thresholded(dataclasses.replace(model, denoiser=model.denoiser.given(**given)), model.config)
        part = jnp.asarray(y[np.array(places)], jnp.float32)
        moved, taken = _compiled(settings, float(s[0]), float(s[1]), denoiser, part)
        values.append(np.asarray(moved))
        calls.append(np.asarray(taken))
    return Transported(np.concatenate(values)[: len(y)], np.concatenate(calls)[: len(y)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(settings: Adaptive, s_start: float, s_end: float, denoiser: Any, y: jax.Array) -> tuple[Any, Any]:
    return adaptive.transport(settings, denoiser, y, s_start, s_end)
