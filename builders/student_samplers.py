"""config.student -> the sampler of a student, and the grid it is called on."""

import dataclasses

from absl import logging
from ml_collections import ConfigDict

from builders.grids import prior_scale
from builders.model import Model
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
    if config.student.method == "distilled":
        return one_pass.create_distilled(grid.s, denoiser, model.shape, prior, record)
    return one_pass.create_consistency(grid.s[:-1], config.student.s_min, denoiser, model.shape, prior, record)


def create_operator(denoiser: Denoiser, config: ConfigDict) -> Operator:
    """The network of a "dsno" student with the times of its outputs, config.student.times."""
    convention = dataclasses.replace(denoiser, params=None, conditions={})
    times = tuple(float(part) for part in config.student.times.split(","))
    unit, centered = config.model.sigma_data, config.data.centered
    return Operator(denoiser.params, denoiser.network, convention, times, unit, centered, denoiser.conditions)
