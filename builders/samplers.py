"""From config.sampling to a `Sampler`: levels, masks, grids and solvers, all checked before anything compiles."""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import precond
import sde_lib
from array_types import Keys
from builders import adaptive, classifier_free, schedules, solvers, students
from builders.conditions import (
    Take,
    begin_at,
    begin_from,
    numbered,
    parse_labels,
    read_latents,
    start_pictures,
    to_range,
)
from builders.config import shipped
from builders.grids import create_grid, prior_scale
from builders.guidance import METHODS as GUIDED
from builders.guidance import create_guided_sampler, create_observation
from builders.model import Model
from builders.prompts import Contexts, read_prompts
from builders.student_samplers import create_grid as create_student_grid
from builders.student_samplers import create_student_sampler, every_kth
from configs import check
from data import conditions
from masks.files import Kind, read_mask
from models import edm
from models.denoiser import Denoiser
from precond.stability import automatic_alpha, stability_warning
from sampling import controllable, predictor_corrector
from sampling.base import Sampler, TimeGrid
from sampling.learned import Schedule


def create_preconditioner(
    config: ConfigDict, shape: tuple[int, int, int], levels: sde_lib.Levels
) -> precond.Preconditioner:
    """M of config.sampling: masks read and checked against the image shape, alpha resolved, skew operator added."""
    sampling = config.sampling
    if sampling.method == "pc":  # the sampler without a preconditioner, whatever masks the config names
        return precond.Identity()
    masks = {
        kind: read_mask(shipped(sampling[f"{kind}_mask_path"]), kind, shape)
        for kind in get_args(Kind)
        if sampling[f"{kind}_mask_path"]
    }
    alpha = automatic_alpha(levels, sampling.pds_mode) if sampling.alpha == "auto" else _number(sampling.alpha)
    if sampling.alpha == "auto":
        logging.info("alpha=auto: %.3g for %d levels.", alpha, len(levels.t))
    m = precond.create_preconditioner(masks.get("freq"), masks.get("space"), alpha)
    if sampling.skew and sampling.pds_mode == "paper":
        raise ValueError("The published updates have no skew term; choose --config.sampling.pds_mode=marginal with it.")
    if bool(sampling.skew) != bool(sampling.omega):
        logging.warning(
            "config.sampling.skew=%r with config.sampling.omega=%g adds nothing: it needs a name and a strength.",
            sampling.skew,
            sampling.omega,
        )
    return precond.create_skew(sampling.skew, m, sampling.omega, shape[0], shape[1])


def _number(alpha: Any) -> float:
    try:
        return float(alpha)
    except ValueError:
        raise ValueError(f"--alpha={alpha!r} is neither a number nor 'auto'.") from None


def create_levels(config: ConfigDict, sde: sde_lib.GaussianSDE) -> sde_lib.Levels:
    """The noise levels of a predictor-corrector run: int(num_scales / speed_up) of them, or sampling.num_steps."""
    sampling = config.sampling
    if not sampling.speed_up > 0:
        raise ValueError(f"--speed_up={sampling.speed_up:g} must be positive.")
    n = sampling.num_steps or int(sde.num_scales / sampling.speed_up)
    # eps N stays constant, as in the published program: the last level moves up with the steps.
    end_time = sde.end_time * sde.num_scales / n if sampling.num_steps else sde.end_time * sampling.speed_up
    return sde.levels(n, min(end_time, 0.5), published=sampling.pds_mode == "paper")


def create_sampler(model: Model, config: ConfigDict, record: bool = False) -> Sampler:
    """The sampler of config.sampling on this model, checked as a whole; nothing of the run is compiled."""
    model, config = every_kth(model, config)
    sampling, guided = config.sampling, config.guidance.kind != "none"
    _check_method(sampling.method)
    check.validate_sampling(config)
    students.check(config)
    schedules.check(config)
    given, null = network_conditions(model, config), classifier_free.null_conditions(model, config)
    sampler_of: Callable[[Model, Take], Sampler]
    stands = None  # at which noise scales
    if sampling.method in ("pc", "pds"):
        sampler_of = create_predictor_corrector(model, config, record)
    elif sampling.method in students.METHODS:
        grid = create_student_grid(config)
        stands = grid.s
        sampler_of = functools.partial(_create_student, config, grid, record)
    elif sampling.method in schedules.METHODS:
        schedule = schedules.read_schedule(model, config)
        stands = schedule.grid.s
        sampler_of = functools.partial(_create_learned, config, schedule, record)
    elif sampling.method == adaptive.METHOD:
        grid = adaptive.ends(model, config)
        sampler_of = functools.partial(_create_adaptive, config, record)
    else:
        grid = _known(create_grid(model, config, searching(model, config)), model)
        stands = grid.s
        if guided or sampling.method not in solvers.METHODS:
            sampler_of = create_guided_sampler(model, config, grid, record)
        else:
            sampler_of = functools.partial(_create_unguided, config, grid, record)

    def create(take: Take) -> Sampler:
        return sampler_of(dataclasses.replace(model, denoiser=_given(model, config, given, null, take)), take)

    sampler = numbered(create) if given or guided else create(Take([0], 1))
    if sampling.latents:
        sampler = begin_from(sampler, read_latents(config, model.shape), prior_scale(model.sde, grid))
    elif sampling.start_image:
        pictures = model.encode(to_range(start_pictures(model, config), config))
        sampler = begin_at(sampler, pictures, prior_scale(model.sde, grid) / sampling.start_sigma)
    # Last, for what is made anew for each group counts evaluations.
    return classifier_free.counted(sampler, config, sampler_of, model)._replace(grid=stands)


def _check_method(method: str) -> None:
    known = sorted({"pc", "pds", adaptive.METHOD, *schedules.METHODS, *students.METHODS, *solvers.METHODS, *GUIDED})
    if method not in known:
        # The published README of splitting says stps4, which the published program takes for ancestral sampling.
        close = difflib.get_close_matches(method, known, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"--method={method!r} is unknown; choose one of {known}.{hint}")


def _create_adaptive(config: ConfigDict, record: bool, model: Model, take: Take) -> Sampler:
    return adaptive.create_adaptive_sampler(model, config, record)


def _create_student(config: ConfigDict, grid: TimeGrid, record: bool, model: Model, take: Take) -> Sampler:
    return create_student_sampler(model, config, grid, record)


def _create_learned(config: ConfigDict, schedule: Schedule, record: bool, model: Model, take: Take) -> Sampler:
    return schedules.create_learned_sampler(model, config, schedule, record)


def _create_unguided(config: ConfigDict, grid: TimeGrid, record: bool, model: Model, take: Take) -> Sampler:
    return solvers.create_ode_sampler(model, config, grid, record)


def class_labels(config: ConfigDict) -> np.ndarray | None:
    """The class of each image in turn for a network that is told one; None for a network that is not."""
    count, null = classifier_free.classes(config)
    return parse_labels(config.sampling.labels, count, config.seed, null) if count else None


def network_conditions(model: Model, config: ConfigDict) -> dict[str, Any]:
    """What the network is given besides noise, for each image in turn: its class, its prompt as context, a small image
    to enlarge. Values are arrays [n, ...], or compute the rows that are asked for (`Contexts`)."""
    labels = class_labels(config)
    given: dict[str, Any] = {} if labels is None or not config.data.num_classes else {"classes": labels}
    if model.text is not None:
        said: Any = read_prompts(config) if model.text.kind == "clip" else labels
        given["context"] = Contexts(model.text, said)
    if config.student.guidance:
        given["guidance"] = np.array([config.guidance.cfg_scale], np.float32)
    if config.model.super_resolution:
        path, factor = shipped(config.data.low_res), config.guidance.factor
        small = conditions.read_low_res(path, model.shape, factor, "config.data.low_res")
        given["low_res"] = to_range(small, config).astype(np.float32)
    return given


def denoiser_of(model: Model, config: ConfigDict) -> Callable[[Take], Denoiser]:
    """The network as a sampler calls it for a group of images: told its conditions, guided as config.guidance says."""
    given, null = network_conditions(model, config), classifier_free.null_conditions(model, config)
    return functools.partial(_given, model, config, given, null)


def create_denoiser(model: Model, config: ConfigDict, take: Take) -> Denoiser:
    """`denoiser_of` for one group."""
    return denoiser_of(model, config)(take)


def _given(
    model: Model, config: ConfigDict, given: dict[str, Any], null: dict[str, np.ndarray], take: Take
) -> Denoiser:
    told = model.denoiser.given(**{name: jnp.asarray(take(values)) for name, values in given.items()})
    return classifier_free.create_guided(told, config, null, take)


def _known(grid: TimeGrid, model: Model) -> TimeGrid:
    """The grid on noise scales that the network knows, as EDM's sampler has it: iDDPM was trained on some only."""
    network = model.denoiser.network
    return TimeGrid(*map(network.round, grid)) if isinstance(network, edm.Scaled) else grid


def searching(model: Model, config: ConfigDict) -> Denoiser:
    """The denoiser that a grid is searched with: of one microbatch of images."""
    count = config.sampling.microbatch
    return create_denoiser(model, config, Take(range(count), count))


def predictor_corrector_settings(config: ConfigDict) -> predictor_corrector.PredictorCorrector:
    fields = dataclasses.fields(predictor_corrector.PredictorCorrector)
    return predictor_corrector.PredictorCorrector(**{field.name: config.sampling[field.name] for field in fields})


def create_predictor_corrector(
    model: Model, config: ConfigDict, record: bool = False
) -> Callable[[Model, Take], Sampler]:
    """Methods pc and pds: stochastic, with or without a preconditioner, perhaps held to what config.guidance shows.

    Returns a function of the model (under its conditions, perhaps) and of the images of a group.
    """
    levels, settings = create_levels(config, model.sde), predictor_corrector_settings(config)
    m = create_preconditioner(config, model.shape, levels)
    warning = stability_warning(levels, config.sampling.pds_mode, m)
    if warning and settings.predictor != "none":
        logging.warning("%s", warning)
    quirks = config.sampling.published_quirks
    seen = create_observation(model, config) if config.guidance.kind != "none" else None

    def create(model: Model, take: Take) -> Sampler:
        sampler = predictor_corrector.create(settings, model.denoiser, levels, m, model.shape, quirks, record)
        if seen is None:
            return sampler

        def observe(keys: Keys) -> controllable.Observation:
            return controllable.Observation(seen.operator, jnp.asarray(take._replace(count=len(keys))(seen.observed)))

        return controllable.create(sampler, settings, model.sde, levels, observe)

    return create


def num_updates(sampler: Sampler) -> int:
    """Rows of the sampler's table: turns of its loop."""
    return len(jax.tree.leaves(sampler.rows)[0])
