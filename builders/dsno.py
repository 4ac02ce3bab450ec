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
from builders import pairs, students
from builders.config import data_range, shipped
from builders.distillation import grid_text
from builders.model import Model, create_denoiser, create_network
from builders.own_model import load_function
from builders.pairs import Teacher
from builders.perceptual import load_perceptual
from builders.student_samplers import create_operator
from data import store
from models.operator import Operator, from_teacher
from sampling import learned
from training import dsno

NETWORKS = ("ncsnpp", "v_diffusion", "adm")  # that have temporal layers
HEADS = ("new", "teacher")
_OTHER_NOISE = 104_729  # added to config.seed: students learn from other noise than that of the images one draws


def check(model: Model) -> None:
    """Raises ValueError for a teacher whose network cannot become an operator."""
    config = model.config
    if config.student.method:
        raise ValueError("The teacher is itself a student; DSNO learns the path of a model that takes any steps.")
    if config.model.name not in NETWORKS:
        raise ValueError(
            f"config.model.name={config.model.name!r}: config.training.method='dsno' trains {', '.join(NETWORKS)}."
        )
    if config.model.super_resolution:
        raise ValueError("config.model.super_resolution: a network that enlarges images is no teacher of DSNO.")
    if config.dsno.head not in HEADS:
        raise ValueError(f"config.dsno.head={config.dsno.head!r} is unknown; choose one of {HEADS}.")
    if config.dsno.head == "teacher" and not _has_image_head(config):
        raise ValueError(
            f"config.dsno.head='teacher' keeps a convolution that predicts {config.model.predicts!r} for data in "
            f"{model.data_range}, where an operator puts out images in (-1, 1); choose 'new'."
        )
    if 1 / config.dsno.teacher_steps < model.sde.end_time * (1 - 1e-6):
        raise ValueError(
            f"config.dsno.teacher_steps={config.dsno.teacher_steps} steps evenly to t = 0, and this teacher knows no "
            f"time below {model.sde.end_time:.4g}: take at most {int(1 / model.sde.end_time + 1e-6)} steps."
        )
    if config.model.scaling != "none" and config.model.scaling_label != "sigma":
        raise ValueError(
            f"config.model.scaling_label={config.model.scaling_label!r}: an operator has no scaling around its network "
            "and is told 'sigma'."
        )
    if config.guidance.kind != "none" or config.guidance.cfg_scale != 1:
        said = f"kind={config.guidance.kind!r}, cfg_scale={config.guidance.cfg_scale:g}"
        raise ValueError(f"config.guidance: {said}: DSNO learns without guidance; leave it out.")


def _has_image_head(config: ConfigDict) -> bool:
    """The network puts out the image itself, at least at the largest noise scale, where EDM's scaling keeps nothing."""
    return config.model.scaling == "edm" or (config.model.predicts == "x0" and config.data.centered)


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
    if model.config.data.num_classes and "labels" not in spec.guidance:
        raise ValueError(
            f"config.dsno.trajectories={path} has no classes, which this network is told; make another with "
            "--mode=pairs."
        )
    known = (tuple(spec.shape), spec.teacher.get("sha256"), spec.teacher.get("sde"), spec.target)
    wanted = (model.shape, model.weights_hash, learned.describe_sde(model.sde), "x0")
    for name, ours, theirs in zip(("shape", "weights", "process", "target"), wanted, known, strict=True):
        if ours != theirs:
            raise ValueError(
                f"config.dsno.trajectories={path} is for {name} {theirs}, this model needs {ours}; make another with "
                "--mode=pairs --config.pairs.label_times=..., or leave config.dsno.trajectories empty."
            )
    if set(spec.guidance) - {"labels"}:
        raise ValueError(f"config.dsno.trajectories={path} was drawn under guidance; DSNO learns without.")
    return found


def student_config(model: Model, times: tuple[float, ...]) -> ConfigDict:
    """The config that the student's file carries: a network with temporal layers, called once."""
    own = copy.deepcopy(model.config)
    students.become_operator(own, times)
    own.checkpoint = ""
    return own


def create_student(model: Model, own: ConfigDict) -> tuple[Operator, list[str]]:
    """The operator of `student_config` with the teacher's weights, and the paths of those that are not the teacher's.

    The temporal layers are new, and so is the head unless config.dsno.head keeps it.
    """
    network = create_network(own)
    x = jnp.zeros((own.model.num_times, *model.shape))
    init = jax.jit(network.init)
    fresh = init(jax.random.fold_in(jax.random.key(own.seed), 1), x, jnp.ones(len(x)))["params"]
    head = _head(fresh)
    teacher = dict(model.denoiser.params)
    # Of two heads, the first is that of the image.
    teacher[head] = {name: leaf[..., : model.shape[-1]] for name, leaf in teacher[head].items()}
    params, new = from_teacher(teacher, fresh, head if own.dsno.head == "new" else "")
    return create_operator(create_denoiser(own, params), own), new


def _head(params: Any) -> str:
    """Name of the last convolution."""
    numbered = [name for name in params if name.startswith("Conv_")]
    if numbered:
        return max(numbered, key=lambda name: int(name.split("_")[1]))
    return "conv_out" if "conv_out" in params else "out_2"


def loss_settings(config: ConfigDict) -> dsno.OperatorLoss:
    """config.dsno; of the perceptual distance the function named there makes the network, or config.loss.weights."""
    own = config.dsno
    features = None
    if own.distance == "perceptual" and own.features:
        features = load_function(own.features, "config.dsno.features")()
    elif own.distance == "perceptual" and config.loss.weights:
        features = load_perceptual(config.loss.weights, data_range(config), heads=False).features
    return dsno.OperatorLoss(own.distance, own.weighting, own.weight_cap, own.huber, features)


def validation(settings: dsno.OperatorLoss, operator: Operator, found: store.Store, most: int = 32) -> dict[str, Any]:
    """Distance at each time over (at most `most`) records that are never learned from, without time weights."""
    indices = found.split()[1][:most]
    records = found.read(indices)
    if (records.label >= 0).all():
        operator = operator.given(classes=jnp.asarray(records.label))
    frames = records.frames.astype(np.float32)
    told = jax.jit(Operator.trajectory)(operator, found.noise(indices))
    values = np.asarray(dsno.distances(settings, told, jnp.asarray(frames))).mean(axis=0)
    return {f"{time:.4g}": round(float(value), 5) for time, value in zip(operator.times, values, strict=True)}


def folder_of(config: ConfigDict, workdir: Path) -> Path:
    """Where trajectories are, or are to be."""
    return Path(shipped(config.dsno.trajectories)) if config.dsno.trajectories else workdir / "trajectories"
