"""config.student -> the sampler of a student, and the grid it is called on."""

import copy
import dataclasses

from absl import logging
from ml_collections import ConfigDict

from builders import published_samplers
from builders.grids import prior_scale
from builders.model import Model, create_denoiser
from builders.solvers import create_thresholded
from models.denoiser import Denoiser
from models.operator import Operator
from sampling import one_pass, time_grids
from sampling.base import Sampler, TimeGrid


def create_grid(config: ConfigDict) -> TimeGrid:
    """The noise scales of the student's calls and the end; a consistency student is called at the first of its own."""
    scales = [float(part) for part in config.student.grid.split(",")]
    calls = config.sampling.num_steps or config.student.num_steps
    return time_grids.explicit([*scales[:calls], 0.0], source="config.student.grid")


def create_student_sampler(model: Model, config: ConfigDict, grid: TimeGrid, record: bool = False) -> Sampler:
    """DDIM on its grid for "distilled"; for "consistency", noise added again before each call but the first.

    "dsno" is called once, for the work of as many calls as its trajectory has points.
    """
    if config.student.method == "dsno":
        operator = create_operator(model.denoiser, config)
        logging.info("One network call an image, which is the work of %d.", len(operator.times))
        return one_pass.create_operator(operator, grid.s[0], model.shape, prior_scale(model.sde, grid), record)
    denoiser, prior = create_thresholded(model, config), prior_scale(model.sde, grid)
    if compatible := published_samplers.create(model, config, denoiser, grid, record):
        return compatible
    if config.student.method == "distilled":
        return one_pass.create_distilled(grid.s, denoiser, model.shape, prior, record)
    return one_pass.create_consistency(grid.s[:-1], config.student.s_min, denoiser, model.shape, prior, record)


def every_kth(model: Model, config: ConfigDict) -> tuple[Model, ConfigDict]:
    """A student of the unofficial program for n steps that --steps asks for n/k, as that program's `time_scale` does.

    It has a chain of n/k levels of its own, and its network is told k times as large steps. Any other model and config
    come back as they are. Raises ValueError where the steps do not divide.
    """
    asked, made_for = config.sampling.num_steps, config.sde.num_scales
    if config.model.name != "pd_unet" or asked in (0, made_for) or config.sampling.grid != str(made_for):
        return model, config
    if made_for % asked:
        divisors = ", ".join(str(n) for n in range(1, made_for + 1) if made_for % n == 0)
        raise ValueError(f"--steps={asked}: this student was made for {made_for} steps; it can take {divisors}.")
    own = copy.deepcopy(config)
    own.sde.update(num_scales=asked, beta_max=float(min(20, asked)))
    own.model.time_scale = config.model.time_scale * made_for / asked
    own.sampling.grid = str(asked)
    return dataclasses.replace(model, denoiser=create_denoiser(own, model.denoiser.params), config=own), own


def create_operator(denoiser: Denoiser, config: ConfigDict) -> Operator:
    """The network of a "dsno" student with the times of its outputs, config.student.times."""
    convention = dataclasses.replace(denoiser, params=None, conditions={})
    times = tuple(float(part) for part in config.student.times.split(","))
    unit, centered = config.model.sigma_data, config.data.centered
    return Operator(denoiser.params, denoiser.network, convention, times, unit, centered, denoiser.conditions)
