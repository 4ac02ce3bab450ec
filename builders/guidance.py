"""From config.guidance to guided samplers: the guidance, its schedule, the splitting, and what the user gave."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from array_types import Keys
from builders.classifier import load_classifier
from builders.classifier_free import CONTRASTS
from builders.conditions import Take, parse_labels, to_range
from builders.config import shipped
from builders.grids import noise_range, prior_scale
from builders.latent import refuse
from builders.model import Model, load
from builders.solvers import create_thresholded, multistep_settings
from builders.text import create_prompt
from data import conditions
from models.latent import OfImage
from sampling import base, conditional, guidance, inverse_problems, multistep, operators, splitting
from sampling.base import Sampler, TimeGrid
from sampling.denoising import Denoiser
from sampling.guidance import Schedule

INVERSE = operators.TASKS
KINDS = ("none", "classifier", *INVERSE, *CONTRASTS, "text")
LIKELIHOODS = ("direct", "pigdm", "dps", "projection")
SHAPES = ("constant", "rising", "falling")
METHODS = tuple(f"{splitting}{order}" for splitting in ("ltsp", "stsp") for order in (1, 2, 3, 4))


class Condition(NamedTuple):
    """What the images are to fulfil.

    Attributes:
      guide: (denoiser, take) -> the guidance of the images that `take` picks; None where only a projection acts.
      project: (take, keys of the images) -> the projection after each step; None for none.
      given: what the user gave, by the words a picture is labelled with: images [n, h, w, c] in [0, 1].
      labels: the class of each image in turn, where there are classes.
    """

    guide: Callable[[Denoiser, Take], Any] | None = None
    project: Callable[[Take, Keys], Any] | None = None
    given: dict[str, np.ndarray] = {}
    labels: np.ndarray | None = None


def create_condition(model: Model, config: ConfigDict) -> Condition:
    """The condition of config.guidance: files read and checked; no network is run."""
    settings, kind = config.guidance, config.guidance.kind
    if kind == "none":
        return Condition()
    if kind == "classifier":
        return _classifier(model, config)
    if kind in INVERSE:
        seen = create_observation(model, config)
        return Condition(*_likelihood(config, seen.operator, seen.observed, model.shape), given=seen.given)
    if kind in CONTRASTS:
        return _contrast(model, config)
    if kind == "text":
        prompt: Any = create_prompt(settings, model.image_shape, model.data_range)
        if model.codec is not None:
            prompt = OfImage(model.codec, prompt)
        return Condition(lambda denoiser, take: guidance.OnEstimate(denoiser, prompt))
    raise ValueError(f"config.guidance.kind={kind!r} is unknown; choose one of {list(KINDS)}.")


def _classifier(model: Model, config: ConfigDict) -> Condition:
    classifier, num_classes = load_classifier(config.guidance.classifier, model)
    labels = parse_labels(config.sampling.labels, num_classes, config.seed)

    def guide(denoiser: Denoiser, take: Take) -> Any:
        return guidance.Classifier(classifier, jnp.asarray(take(labels)), model.sde)

    return Condition(guide, labels=labels)


def _contrast(model: Model, config: ConfigDict) -> Condition:
    """Away from another model: one without classes (classifier-free) or a worse one (autoguidance)."""
    settings = config.guidance
    if not settings.model:
        raise ValueError(
            f"config.guidance.kind={settings.kind!r} needs config.guidance.model, the weight file of the model to be "
            "led away from."
        )
    other = load(None, shipped(settings.model))
    if other.shape != model.shape or type(other.sde) is not type(model.sde):
        raise ValueError(
            f"config.guidance.model={settings.model} draws {other.shape} under {type(other.sde).__name__}, the "
            f"model {model.shape} under {type(model.sde).__name__}; both must agree."
        )
    num_classes = other.config.data.num_classes
    labels = parse_labels(config.sampling.labels, num_classes, config.seed) if num_classes else None

    def guide(denoiser: Denoiser, take: Take) -> Any:
        away = other.denoiser if labels is None else other.denoiser.given(classes=jnp.asarray(take(labels)))
        return guidance.Contrast(denoiser, away)

    return Condition(guide)


class Observation(NamedTuple):
    """The user's images as a linear operator saw them."""

    operator: operators.LinearOperator
    observed: np.ndarray  # [n, h', w', c'], in the data range
    given: dict[str, np.ndarray]  # as in `Condition`


def create_observation(model: Model, config: ConfigDict) -> Observation:
    """Inpainting, colourisation and super-resolution: what config.guidance.image and mask leave to be seen."""
    settings, shape = config.guidance, model.shape
    kind, key = settings.kind, "config.guidance.image"
    path = shipped(settings.image)
    if kind == "inpainting":
        return _known_pixels(model, config, path, key)
    refuse(
        config,
        f"config.guidance.kind={kind!r} observes sums of pixels",
        "What they say of latents is not linear; inpainting, --start_image and guidance by text work on latents.",
    )
    operator = operators.create(kind, shape, None, settings.factor)
    if kind == "colorization":
        grey = conditions.read_grey(path, shape, key)
        observed, given = to_range(grey, config), {"given": np.repeat(grey, shape[2], axis=-1)}
    else:
        small = conditions.read_low_res(path, shape, settings.factor, key)
        large = small.repeat(settings.factor, axis=1).repeat(settings.factor, axis=2)
        observed, given = to_range(small, config), {"given": large}
    return Observation(operator, observed.astype(np.float32), given)


def _known_pixels(model: Model, config: ConfigDict, path: str, key: str) -> Observation:
    """Inpainting: a place of a latent is known where all its pixels are."""
    mask = conditions.read_mask(shipped(config.guidance.mask), model.image_shape, "config.guidance.mask")
    images = conditions.read_images(path, model.image_shape, key)
    h, w = model.shape[:2]
    known = mask.reshape(h, len(mask) // h, w, mask.shape[1] // w, 1).min(axis=(1, 3))
    if not known.any():
        raise ValueError(
            f"config.guidance.mask={config.guidance.mask}: no block of {len(mask) // h} x {mask.shape[1] // w} pixels, "
            "which is one place of a latent, is white throughout; leave larger regions known."
        )
    observed = known * model.encode(to_range(images, config).astype(np.float32))
    given = {"given": mask * images + (1 - mask) * 0.5}
    return Observation(operators.create("inpainting", model.shape, known, 1), observed.astype(np.float32), given)


def _likelihood(
    config: ConfigDict, operator: Any, observed: np.ndarray, shape: tuple[int, int, int]
) -> tuple[Any, Any]:
    """(guide, project) of config.guidance.likelihood."""
    settings = config.guidance
    name = settings.likelihood

    def project(take: Take, keys: Keys) -> Any:
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
        return inverse_problems.Projection(operator, jnp.asarray(take(observed)), noise)

    def guide(denoiser: Denoiser, take: Take) -> Any:
        seen = jnp.asarray(take(observed))
        if name == "direct":
            return inverse_problems.Direct(operator, seen, jnp.float32(settings.noise_std))
        if name == "dps":
            return inverse_problems.dps(denoiser, operator, seen)
        stds = jnp.float32(settings.noise_std), jnp.float32(settings.data_std)
        return inverse_problems.PiGDM(denoiser, operator, seen, *stds)

    if name not in LIKELIHOODS:
        raise ValueError(f"config.guidance.likelihood={name!r} is unknown; choose one of {list(LIKELIHOODS)}.")
    if settings.noise_std < 0 or not settings.data_std > 0:
        raise ValueError(
            f"config.guidance.noise_std={settings.noise_std:g} must not be negative and config.guidance.data_std="
            f"{settings.data_std:g} must be positive."
        )
    return (None, project) if name == "projection" else (guide, None)


def create_schedule(config: ConfigDict, s_max: float, s_min: float) -> Schedule:
    """How strongly config.guidance acts at each noise scale."""
    settings = config.guidance
    if settings.shape not in SHAPES:
        raise ValueError(f"config.guidance.shape={settings.shape!r} is unknown; choose one of {list(SHAPES)}.")

    def shape(s: np.ndarray) -> np.ndarray:
        rising = np.clip(np.log(s / s_min) / np.log(s_max / s_min), 0, 1)
        return {"constant": np.ones_like(s), "rising": rising, "falling": 1 - rising}[settings.shape]

    # The contrast of two models is added to the first: the usual w is one more than what multiplies it.
    scale = settings.scale - 1 if settings.kind in CONTRASTS else settings.scale
    return guidance.schedule(scale, tuple(settings.interval), settings.clip, shape, (s_min, s_max))


def create_settings(config: ConfigDict, num_steps: int) -> splitting.Settings:
    """Which splitting, with which solvers, config.sampling.method and config.guidance mean."""
    settings, method = config.guidance, config.sampling.method
    changes = {"conditional": settings.conditional, "substeps": settings.substeps}
    if settings.solver:
        changes["solver"] = settings.solver
    if config.sampling.variant:
        raise ValueError("config.sampling.variant does not go with config.guidance; leave it out.")
    if method in multistep.SOLVERS:
        changes |= multistep_settings(config)
    elif config.sampling.order:
        changes["order"] = config.sampling.order
    return splitting.settings(method, num_steps, settings.compat, **changes)


def create_guided_sampler(
    model: Model, config: ConfigDict, grid: TimeGrid, record: bool = False
) -> Callable[[Model, Take], Sampler]:
    """The sampler of config.sampling.method under config.guidance, checked as a whole; nothing of the run is compiled.

    Returns a function of the model (under its conditions, perhaps) and of the images of a group.
    """
    condition, denoiser = create_condition(model, config), create_thresholded(model, config)
    settings, prior = create_settings(config, grid.num_steps), prior_scale(model.sde, grid)
    schedule = create_schedule(config, *noise_range(config, model.sde))
    curvature = _curvature(settings, model, config, condition, denoiser, grid)
    if curvature:
        warning = splitting.stability_warning(settings, grid, schedule, curvature)
        if warning:
            logging.warning("%s", warning)

    def create(model: Model, take: Take) -> Sampler:
        denoiser = create_thresholded(model, config)

        def guide(keys: Keys) -> Any:
            assert condition.guide is not None  # is called only where it is
            return condition.guide(denoiser, take._replace(count=len(keys)))

        def project(keys: Keys) -> Any:
            assert condition.project is not None
            return condition.project(take._replace(count=len(keys)), keys)

        return splitting.create(
            settings,
            denoiser,
            grid,
            model.shape,
            prior,
            guide if condition.guide else None,
            schedule,
            project if condition.project else None,
            curvature,
            record,
        )

    return create


def _curvature(
    settings: splitting.Settings,
    model: Model,
    config: ConfigDict,
    condition: Condition,
    denoiser: Denoiser,
    grid: TimeGrid,
) -> conditional.Curvature | None:
    """The curvature of log p by noise scale: in closed form, or measured where automatic substeps ask for it."""
    if condition.guide is None:
        return None
    count = config.sampling.microbatch
    guide = condition.guide(denoiser, Take(range(count), count))
    if hasattr(guide, "curvature"):
        return guide.curvature
    if settings.splitting == "none" or settings.substeps:
        return None
    # Some images without guidance, and power iteration at each state of theirs.
    plain = dataclasses.replace(settings, splitting="none", solver="ddim", order=0, substeps=1, conditional="euler")
    sampler = splitting.create(plain, denoiser, grid, model.shape, prior_scale(model.sde, grid), record=True)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1), count)
    operands, state = sampler.begin(keys)
    start = np.asarray(state.y)[None]
    _, (states, _) = base.integrate(sampler.step, operands, state, sampler.rows, config.sampling.chunk)
    inner = grid.s > 0
    states = np.concatenate([start, np.asarray(states)])[inner]
    logging.info("Measuring the curvature of log p at %d noise scales for automatic substeps.", inner.sum())
    return conditional.measured_curvature(guide, jnp.asarray(states), grid.s[inner], keys[0])
