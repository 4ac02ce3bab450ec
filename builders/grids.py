"""config.sampling.grid and the number of steps -> a `TimeGrid`, and the spread of the state where it begins."""

import re

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import sde_lib
from array_types import Table
from builders.config import shipped
from builders.model import Model
from sampling import base, learned, multistep, time_grids
from sampling.base import TimeGrid
from sampling.denoising import Denoiser

TEACHER_STEPS = 60  # of the trajectories that "gits" searches
# Their polynomials are in log s, and so are their papers' grids; on the demo that is 1.6 to 3.5 times as near as "edm".
EVEN_IN_LOG_S = ("unipc", "dpmpp")


def num_steps(config: ConfigDict, sde: sde_lib.GaussianSDE) -> int:
    """Steps of a deterministic run: sampling.num_steps, or num_scales / speed_up."""
    return config.sampling.num_steps or int(sde.num_scales / config.sampling.speed_up)


def noise_range(config: ConfigDict, sde: sde_lib.GaussianSDE) -> tuple[float, float]:
    """(s_max, s_min): where a run begins (sampling.start_sigma if given) and the last noise scale that is not 0."""
    s_max, s_min = float(sde.noise_scale(np.float64(1.0))), float(sde.noise_scale(np.float64(sde.end_time)))
    start = config.sampling.start_sigma
    if not start:
        return s_max, s_min
    if not s_min < start <= s_max:
        raise ValueError(
            f"--start_sigma={start:g} must lie above {s_min:.3g} and not above {s_max:.4g}, the noise scales of the "
            "model in units of its data range; 0.3 keeps the layout of a picture in [0, 1]."
        )
    return start, s_min


def ladder(sde: sde_lib.GaussianSDE) -> Table:
    """The noise scales of the training levels, ascending. Raises ValueError for a process without levels."""
    if isinstance(sde, sde_lib.VESDE):
        return np.sort(sde.discrete_sigmas())
    if isinstance(sde, sde_lib.VPSDE | sde_lib.DiscreteVPSDE):
        return time_grids.ddpm_noise_scales(sde.discrete_betas())
    raise ValueError(
        f"{type(sde).__name__} has no training levels to keep some of; choose a grid by name (config.sampling.grid)."
    )


def create_grid(model: Model, config: ConfigDict, denoiser: Denoiser) -> TimeGrid:
    """The grid of config.sampling for a run that ends at noise 0.

    A name of `time_grids`; "" for the one that suits the solver; "gits", which draws a few trajectories with
    `denoiser` first; levels of the training ladder ("20", "4,6,5", "ddim20"); noise scales with a decimal point,
    "14.6,2.5,0.4,0.0"; or a file of them, "list.json" (`sampling.learned`).

    Raises ValueError for a grid that is none of these, or does not have the number of steps asked for.
    """
    sampling = config.sampling
    spec = sampling.grid or ("logsnr" if sampling.method in EVEN_IN_LOG_S else "edm")
    s_max, s_min = noise_range(config, model.sde)
    if spec == "gits":
        return _searched(model, config, denoiser, num_steps(config, model.sde), s_max, s_min)
    if spec.partition("#")[0].endswith(".json"):
        grid = _from_file(config, spec, model.sde)
    elif re.fullmatch(r"[\d.eE+-]+(,[\d.eE+-]+)+", spec) and "." in spec:
        grid = time_grids.explicit([_number(part, spec) for part in spec.split(",")])
    elif re.fullmatch(r"(ddim)?\d+(,\d+)*", spec):
        grid = time_grids.explicit(time_grids.respaced(spec, ladder(model.sde)))
    else:
        return time_grids.make(spec, num_steps(config, model.sde), s_max, s_min, model.sde)
    if sampling.num_steps not in (0, grid.num_steps):
        raise ValueError(
            f"config.sampling.grid={spec!r} has {grid.num_steps} steps, --steps asks for {sampling.num_steps}; leave "
            "one of them out."
        )
    if sampling.start_sigma:
        raise ValueError(f"config.sampling.grid={spec!r} says itself where it begins; leave --start_sigma out.")
    return grid


def _from_file(config: ConfigDict, spec: str, sde: sde_lib.GaussianSDE) -> TimeGrid:
    """A published list, or a schedule learned for this very solver that moves its grid alone."""
    found, sampling = learned.read(shipped(spec)), config.sampling
    learned.check(found, spec, solver=sampling.method, order=0, num_steps=sampling.num_steps, sde=sde)
    if found.coefficients or not np.array_equal(found.grid.s, found.grid.s_model):
        raise ValueError(
            f"config.sampling.grid={spec!r} is more than a grid: what the network is told or coefficients were learned "
            f"too. Sample it with --method={found.method} --config.sampling.schedule={spec}."
        )
    return found.grid


def _number(part: str, spec: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise ValueError(f"config.sampling.grid={spec!r}: {part!r} is no noise scale.") from None


def prior_scale(sde: sde_lib.GaussianSDE, grid: TimeGrid) -> float:
    """Standard deviation of y = x/alpha where the grid begins: s for VE; for the others that of x, over alpha."""
    at_one = sde.prior_sigma / float(sde.alpha(np.float64(1.0)))
    return at_one * float(grid.s[0]) / float(sde.noise_scale(np.float64(1.0)))


def _searched(model: Model, config: ConfigDict, denoiser: Denoiser, n: int, s_max: float, s_min: float) -> TimeGrid:
    """GITS: the steps among those of a DDIM teacher whose Euler jumps miss its trajectories least."""
    sampling = config.sampling
    teacher = time_grids.make("edm", max(TEACHER_STEPS, n), s_max, s_min, model.sde)
    sampler = multistep.create(
        multistep.table("ddim", teacher), denoiser, model.shape, prior_scale(model.sde, teacher), record=True
    )
    costs = []
    groups = -(-sampling.gits_images // sampling.microbatch)
    logging.info("gits: %d trajectories of %d network calls.", groups * sampling.microbatch, teacher.num_steps)
    for group in range(groups):
        # Other images than those of a run, so that the grid is not fitted to what it is judged on.
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2**32 - 1 - group), sampling.microbatch)
        operands, state = sampler.begin(keys)
        start = np.asarray(state.y)[None]
        _, (states, x0) = base.integrate(sampler.step, operands, state, sampler.rows, sampling.chunk)
        states = np.concatenate([start, np.asarray(states)])
        costs.append(time_grids.euler_jump_costs(states, np.asarray(x0), teacher.s))
    path = time_grids.cheapest_path(np.mean(costs, axis=0), n)
    found = teacher.s[path]
    logging.info("gits found --config.sampling.grid=%s", ",".join(f"{value:#.6g}" for value in found))
    return time_grids.explicit(found)
