"""config.sampling -> a sampler of the deterministic engine, or of a stochastic one built on it."""

import dataclasses
import inspect
from typing import Any

from ml_collections import ConfigDict

from builders import published_samplers
from builders.grids import prior_scale
from builders.latent import refuse
from builders.model import Model
from sampling import multistep, sde_solvers, single_step
from sampling.base import Sampler, TimeGrid
from sampling.denoising import Denoiser
from sampling.sde_solvers import Churn, RestartInterval
from sampling.thresholding import Thresholded, thresholded

STOCHASTIC = ("edm", "restart", "sa")
METHODS = (*multistep.SOLVERS, *single_step.STEPS, *STOCHASTIC)


def create_thresholded(model: Model, config: ConfigDict) -> Denoiser:
    """The model's denoiser, its estimates kept in the data range as config.sampling.threshold says."""
    sampling = config.sampling
    if sampling.threshold != "none":
        what = f"config.sampling.threshold={sampling.threshold!r} keeps estimates between black and white"
        refuse(config, what, "Latents have no such ends; leave it at 'none'.")
    wrapped = thresholded(model.denoiser, sampling.threshold, config.data.centered, sampling.threshold_quantile)
    if config.data.range and isinstance(wrapped, Thresholded):
        low, high = config.data.range
        return dataclasses.replace(wrapped, low=low, high=high)
    return wrapped


def multistep_settings(config: ConfigDict) -> dict[str, Any]:
    """`order` and `variant` where they are set. Raises ValueError if config.sampling.method has no such setting."""
    sampling = config.sampling
    settings = {key: sampling[key] for key in ("order", "variant") if sampling[key]}
    solver = multistep.SOLVERS[sampling.method]
    # A partial's own keywords are settings that the name fixes: plms2 is of order 2.
    free = set(inspect.signature(solver).parameters) - set(getattr(solver, "keywords", {}))
    for key in settings:
        if key not in free:
            raise ValueError(
                f"--method={sampling.method} has one {key} only; leave config.sampling.{key} as it is, or choose a "
                "solver that has several (docs/methods/solvers.md)."
            )
    return settings


def multistep_table(config: ConfigDict, grid: TimeGrid) -> multistep.Coefficients:
    return multistep.table(config.sampling.method, grid, **multistep_settings(config))


def create_ode_sampler(model: Model, config: ConfigDict, grid: TimeGrid, record: bool = False) -> Sampler:
    """The sampler of one of `METHODS` along a grid (`builders.grids.create_grid`)."""
    method, denoiser = config.sampling.method, create_thresholded(model, config)
    prior = prior_scale(model.sde, grid)
    if compatible := published_samplers.create(model, config, denoiser, grid, record):
        return compatible
    if method in STOCHASTIC:
        return _create_stochastic(method, config, denoiser, grid, model.shape, prior, record)
    if method in single_step.STEPS:
        return single_step.create(method, denoiser, grid, model.shape, prior, record)
    return multistep.create(multistep_table(config, grid), denoiser, model.shape, prior, record)


def _create_stochastic(
    method: str,
    config: ConfigDict,
    denoiser: Denoiser,
    grid: TimeGrid,
    shape: tuple[int, int, int],
    prior: float,
    record: bool,
) -> Sampler:
    sampling = config.sampling
    step: Any
    init: Any
    rows: Any
    if method == "edm":
        rows = sde_solvers.edm(grid, Churn(**sampling.churn.to_dict()))
        step, init, nfe = single_step.heun_step, single_step.init, single_step.num_calls(rows.solver)
    elif method == "restart":
        rows = sde_solvers.restart(single_step.rows, grid, _restart_intervals(sampling.restart))
        step, init, nfe = single_step.heun_step, single_step.init, single_step.num_calls(rows.solver)
    else:
        orders = {key: sampling[key] for key in ("order", "corrector_order") if sampling[key]}
        rows = sde_solvers.sa(grid, sampling.tau, **orders)
        step, init, nfe = multistep.step, multistep.init, grid.num_steps
    return sde_solvers.create(step, init, rows, nfe, denoiser, shape, prior, record)


def _restart_intervals(settings: tuple) -> list[RestartInterval]:
    if len(settings) % 4 or not settings:
        raise ValueError(
            f"config.sampling.restart={settings!r} must be s_min, s_max, num_steps, repeats of each interval, "
            'such as --config.sampling.restart="(0.03,0.3,3,2)".'
        )
    fours = [settings[i : i + 4] for i in range(0, len(settings), 4)]
    return [RestartInterval(low, high, int(steps), int(repeats)) for low, high, steps, repeats in fours]
