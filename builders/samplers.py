"""From config.sampling to a `Sampler`: levels, masks, grids and solvers, all checked before anything compiles."""

import dataclasses
from typing import Any, get_args

import jax
from absl import logging
from ml_collections import ConfigDict

import precond
import sde_lib
from builders import solvers
from builders.config import shipped
from builders.model import Model
from masks.files import Kind, read_mask
from precond.stability import automatic_alpha, stability_warning
from sampling import predictor_corrector
from sampling.base import Sampler


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
    """The sampler of config.sampling on this model, checked as a whole; nothing is compiled."""
    method = config.sampling.method
    if method in ("pc", "pds"):
        return create_predictor_corrector(model, config, record)
    if method in solvers.METHODS:
        return solvers.create_ode_sampler(model, config, record)
    known = sorted({"pc", "pds", *solvers.METHODS})
    raise ValueError(f"--method={method!r} is unknown; choose one of {known}.")


def predictor_corrector_settings(config: ConfigDict) -> predictor_corrector.PredictorCorrector:
    fields = dataclasses.fields(predictor_corrector.PredictorCorrector)
    return predictor_corrector.PredictorCorrector(**{field.name: config.sampling[field.name] for field in fields})


def create_predictor_corrector(model: Model, config: ConfigDict, record: bool = False) -> Sampler:
    """Methods pc and pds: stochastic, with or without a preconditioner."""
    levels, settings = create_levels(config, model.sde), predictor_corrector_settings(config)
    m = create_preconditioner(config, model.shape, levels)
    warning = stability_warning(levels, config.sampling.pds_mode, m)
    if warning and settings.predictor != "none":
        logging.warning("%s", warning)
    quirks = config.sampling.published_quirks
    return predictor_corrector.create(settings, model.denoiser, levels, m, model.shape, quirks, record)


def num_updates(sampler: Sampler) -> int:
    """Rows of the sampler's table: turns of its loop."""
    return len(jax.tree.leaves(sampler.rows)[0])
