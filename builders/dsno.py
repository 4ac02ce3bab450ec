"""From config.dsno to an operator that learns a teacher's whole path at once, and the trajectories it learns from."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from array_types import Table
from builders import pairs
from builders.config import shipped
from builders.distillation import grid_text
from builders.model import Model, create_denoiser, create_network
from builders.pairs import Teacher
from builders.student_samplers import create_operator
from data import store
from models.operator import Operator, from_teacher
from sampling import learned
from training import dsno

_OTHER_NOISE = 104_729  # added to config.seed: students learn from other noise than that of the images one draws


def check(model: Model) -> None:
    """Raises ValueError for a teacher whose network cannot become an operator."""
    config = model.config
    if config.student.method:
        raise ValueError("The teacher is itself a student; DSNO learns the path of a model that takes any steps.")
    if config.model.name != "ncsnpp" or config.data.num_classes:
        raise ValueError(
            f"config.model.name={config.model.name!r} with {config.data.num_classes} classes: config.training.method="
            "'dsno' trains NCSN++ and DDPM++ ('ncsnpp') without classes."
        )
    if config.model.scaling != "none" and config.model.scaling_label != "sigma":
        raise ValueError(
            f"config.model.scaling_label={config.model.scaling_label!r}: an operator has no scaling around its network "
            "and is told 'sigma'."
        )
    if config.guidance.kind != "none":
        raise ValueError(f"config.guidance.kind={config.guidance.kind!r}: DSNO learns without guidance; leave it out.")


def teacher_grid(model: Model, steps: int) -> Table:
    """Noise scales even in SDE time, [steps + 1], the last 0, as published."""
    s = np.asarray(model.sde.noise_scale(np.linspace(1, 0, steps + 1)), np.float64)
    s[-1] = 0.0
    return s


def create_teacher(model: Model, config: ConfigDict) -> Teacher:
    """The sampler of config.dsno.teacher, and the points of its path that are kept."""
    own, plain = config.dsno, copy.deepcopy(config)
    times, _ = dsno.stored_times(own.spacing, own.teacher_steps, own.num_times)
    plain.sampling.update(
        method=own.teacher, num_steps=0, grid=grid_text(teacher_grid(model, own.teacher_steps)), order=0, variant=""
    )
    plain.sampling.update(start_image="", start_sigma=0.0, latents="")
    plain.pairs.update(label_times=tuple(map(float, times)), target="x0")
    plain.seed = config.seed + _OTHER_NOISE
    return pairs.create_teacher(dataclasses.replace(model, config=plain), plain)


def open_trajectories(model: Model, path: str) -> store.Store:
    """A store of --mode=pairs to learn from. Raises ValueError for those of another model or not of x0 estimates."""
    found = store.open_store(shipped(path))
    spec = found.spec
    known = (tuple(spec.shape), spec.teacher.get("sha256"), spec.teacher.get("sde"), spec.target)
    wanted = (model.shape, model.weights_hash, learned.describe_sde(model.sde), "x0")
    for name, ours, theirs in zip(("shape", "weights", "process", "target"), wanted, known, strict=True):
        if ours != theirs:
            raise ValueError(
                f"config.dsno.trajectories={path} is for {name} {theirs}, this model needs {ours}; make another with "
                "--mode=pairs --config.pairs.label_times=..., or leave config.dsno.trajectories empty."
            )
    if spec.guidance:
        raise ValueError(f"config.dsno.trajectories={path} was drawn under guidance; DSNO learns without.")
    return found


def student_config(model: Model, times: tuple[float, ...]) -> ConfigDict:
    """The config that the student's file carries: a network with temporal layers, called once."""
    own = copy.deepcopy(model.config)
    if own.model.scaling != "none":
        own.model.told = "sigma"
    own.model.update(scaling="none", scale_by_sigma=False, predicts="x0")
    own.model.update(mixing=own.dsno.mixing, modes=own.dsno.modes, num_times=len(times))
    grid = grid_text(teacher_grid(model, 1))
    own.student.update(method="dsno", num_steps=1, grid=grid, times=grid_text(np.asarray(times)))
    own.sampling.update(method="dsno", num_steps=1, grid=grid, start_sigma=0.0)
    own.eval.compare, own.checkpoint = "", ""
    return own


def create_student(model: Model, own: ConfigDict) -> tuple[Operator, list[str]]:
    """The operator of `student_config` with the teacher's weights, and the paths of those that are not the teacher's.

    The head, which is to predict something else from other input, and the temporal layers are new.
    """
    network = create_network(own)
    x = jnp.zeros((own.model.num_times, *model.shape))
    init = jax.jit(network.init)
    fresh = init(jax.random.fold_in(jax.random.key(own.seed), 1), x, jnp.ones(len(x)))["params"]
    head = max((name for name in fresh if name.startswith("Conv_")), key=lambda name: int(name.split("_")[1]))
    params, new = from_teacher(model.denoiser.params, fresh, head)
    return create_operator(create_denoiser(own, params), own), new


def loss_settings(config: ConfigDict) -> dsno.OperatorLoss:
    own = config.dsno
    return dsno.OperatorLoss(own.distance, own.weighting, own.weight_cap, own.huber)


def validation(settings: dsno.OperatorLoss, operator: Operator, found: store.Store, most: int = 32) -> dict[str, Any]:
    """Distance at each time over (at most `most`) records that are never learned from, without time weights."""
    indices = found.split()[1][:most]
    frames = found.read(indices).frames.astype(np.float32)
    told = jax.jit(Operator.trajectory)(operator, found.noise(indices))
    values = np.asarray(dsno.distances(settings, told, jnp.asarray(frames))).mean(axis=0)
    return {f"{time:.4g}": round(float(value), 5) for time, value in zip(operator.times, values, strict=True)}


def folder_of(config: ConfigDict, workdir: Path) -> Path:
    """Where trajectories are, or are to be."""
    return Path(shipped(config.dsno.trajectories)) if config.dsno.trajectories else workdir / "trajectories"
