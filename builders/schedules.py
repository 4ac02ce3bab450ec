"""config.sampling.schedule -> a learned schedule that fits the model, and its sampler: the methods ld3, s4s and gs."""

import dataclasses
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from builders.config import shipped
from builders.grids import noise_range, prior_scale
from builders.model import Model
from builders.solvers import create_thresholded
from sampling import learned
from sampling.base import Sampler
from sampling.learned import Schedule

METHODS = ("ld3", "s4s", "gs")


def check(config: ConfigDict) -> None:
    """Raises ValueError for a schedule that the method would not read."""
    sampling = config.sampling
    if sampling.schedule and "{" not in sampling.schedule and sampling.method not in METHODS:
        raise ValueError(
            f"config.sampling.schedule={sampling.schedule!r} is not read by --method={sampling.method}; choose "
            "--method=ld3 (or s4s or gs, whichever it was learned as), or give a plain grid as config.sampling.grid."
        )


def path_of(config: ConfigDict) -> str:
    """The file of config.sampling.schedule, in which {method} and {steps} stand for those asked for.

    Raises ValueError or FileNotFoundError that says what there is instead.
    """
    sampling = config.sampling
    spec = sampling.schedule
    if not spec:
        raise ValueError(
            f"--method={sampling.method} samples a learned schedule: name its file with "
            "--config.sampling.schedule=FILE, or learn one with --mode=train --config FILE.py:ld3."
        )
    if "{" not in spec:
        return shipped(spec)
    filled = spec.replace("{method}", sampling.method).replace("{steps}", str(sampling.num_steps))
    path = Path(shipped(filled))
    if path.exists():
        return str(path)
    pattern = Path(filled).name.replace(f"_{sampling.num_steps}", "_*")
    known = sorted(file.name for file in path.parent.glob(pattern)) if path.parent.is_dir() else []
    asked = f"--steps={sampling.num_steps}" if sampling.num_steps else "no --steps"
    raise FileNotFoundError(
        f"--method={sampling.method} with {asked}: there is no {path.name} in {path.parent}, only {known}; take the "
        "steps of one of them, or learn your own (--mode=train --config FILE.py:ld3 --steps N)."
    )


def read_schedule(model: Model, config: ConfigDict) -> Schedule:
    """The schedule of a run, checked against the model and what else is asked for.

    A list that names no solver goes with that of config.ld3.
    """
    sampling = config.sampling
    path = path_of(config)
    found = learned.read(path)
    learned.check(found, path, solver="", order=sampling.order, num_steps=sampling.num_steps, sde=model.sde)
    if sampling.start_image or sampling.latents or config.guidance.kind != "none":
        raise ValueError(
            f"--method={sampling.method} goes from noise to images along {path} and takes neither guidance nor a start "
            "image; choose a solver, such as --method=unipc, for these."
        )
    s_max, _ = noise_range(config, model.sde)
    if abs(found.grid.s[0] / s_max - 1) > 1e-3:
        raise ValueError(
            f"{path} begins at noise scale {found.grid.s[0]:.6g}, the model at {s_max:.6g}; learn one for this model."
        )
    if found.checkpoint and model.weights_hash and found.checkpoint != model.weights_hash:
        logging.warning(
            "%s was learned with other weights (%s, these are %s); it may not be the best for these.",
            path,
            found.checkpoint[:12],
            model.weights_hash[:12],
        )
    learned_at, scale = found.guidance.get("cfg_scale", 1.0), config.guidance.cfg_scale
    if found.guidance and learned_at != scale:
        logging.warning(
            "%s was learned under a classifier-free guidance scale of %g, this run has %g; another one bends the flow "
            "elsewhere.",
            path,
            learned_at,
            scale,
        )
    if found.solver:
        return found
    own = config.ld3
    return dataclasses.replace(found, solver=own.solver, order=own.order, variant=own.variant)


def create_learned_sampler(model: Model, config: ConfigDict, schedule: Schedule, record: bool = False) -> Sampler:
    """The sampler of `read_schedule`, along its own grid."""
    prior = prior_scale(model.sde, schedule.grid)
    return learned.create(schedule, create_thresholded(model, config), model.sde, model.shape, prior, record)
