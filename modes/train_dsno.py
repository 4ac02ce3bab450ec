"""config.training.method=dsno: a neural operator that draws an image in one pass, from a teacher's trajectories."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import distillation
from builders import dsno as builder
from builders import pairs as pairs_builder
from builders.model import Model, create_denoiser
from builders.training import run_loop
from data import store
from modes import estimate, pairs
from training import dsno
from training.state import TrainState


def train(config: ConfigDict, workdir: Path, checkpoint: str = "") -> None:
    """Trains from the teacher's weights; writes W/checkpoints/dsno.safetensors, a picture and rows as it goes."""
    model = _open(config, checkpoint, workdir)
    config = model.config
    settings = builder.loss_settings(config)
    logging.info("%s", plan(model))
    if config.dsno.trajectories:
        found = builder.open_trajectories(model, config.dsno.trajectories)
    else:
        teacher = builder.create_teacher(model, config)
        found = store.create(
            builder.folder_of(config, workdir), pairs_builder.specification(teacher, config.dsno.num_trajectories)
        )
        pairs.fill(teacher, found)
        found = store.open_store(found.folder)
    own = builder.student_config(model, found.spec.label_times)
    operator, new = builder.create_student(model, own)
    distillation.keep_plan(
        workdir,
        {
            "dsno": config.dsno.to_dict(),
            "times": list(found.spec.label_times),
            "batch_size": config.training.batch_size,
            "teacher": model.weights_hash,
            "seed": config.seed,
        },
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(operator.params))
    logging.info("%.2f M parameters, %d of their arrays are not the teacher's.", size / 1e6, len(new))
    template = create_denoiser(own, operator.params)
    s = builder.teacher_grid(model, config.dsno.teacher_steps)
    judge = distillation.Judge(model, s, config.dsno.teacher, workdir)

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        told = dataclasses.replace(operator, params=params)
        told = told.given(classes=batch["label"]) if config.data.num_classes else told
        return dsno.loss(settings, told, batch["noise"], batch["frames"])

    def snapshot(state: TrainState) -> None:
        """The averaged weights as a file of their own; how far they are from the teacher."""
        trained = dataclasses.replace(operator, params=state.ema_params)
        unseen = builder.validation(settings, trained, found)
        facts = {"updates": int(state.step), "equivalents": len(operator.times), "unseen": unseen}
        judge(distillation.as_student(own, template, state.ema_params), facts)
        path = workdir / "checkpoints" / "dsno.safetensors"
        distillation.write_student(path, own, state.ema_params, int(state.step), model)

    # Not mirrored: the teacher's answer to mirrored noise is not quite the mirrored answer.
    source = store.StoreBatches(found, found.split()[0], config.training.batch_size, config.seed)
    timed = distillation.Timed(source, config.training.num_steps)
    run_loop(own, loss, operator.params, timed, workdir, snapshot, "DSNO")


def show_plan(config: ConfigDict, checkpoint: str, workdir: Path | None) -> None:
    """--dry_run: the plan, after every check that needs no teacher's trajectory."""
    model = _open(config, checkpoint, workdir)
    logging.info("%s All of it: %s.", plan(model), _time(model))


def _time(model: Model) -> str:
    """Of drawing what is to be learned from, and of the updates."""
    own, training = model.config.dsno, model.config.training
    m, calls = own.num_times, 0
    if own.trajectories:
        m = len(builder.open_trajectories(model, own.trajectories).spec.label_times)
    else:
        calls = builder.create_teacher(model, model.config).sampler.nfe * own.num_trajectories
    return estimate.training(model, calls, training.num_steps * training.batch_size * m)


def _open(config: ConfigDict, checkpoint: str, workdir: Path | None) -> Model:
    """The teacher under a config of its own; everything is checked."""
    model = distillation.load_teacher(config, checkpoint, workdir or Path("."))
    builder.check(model)
    return dataclasses.replace(model, config=copy.deepcopy(model.config))


def plan(model: Model) -> str:
    """What is learned from, and what it costs, before anything is compiled."""
    config = model.config
    own, training = config.dsno, config.training
    if own.trajectories:
        spec = builder.open_trajectories(model, own.trajectories).spec
        source = f"{spec.count} trajectories of {len(spec.label_times)} points in {own.trajectories}"
        m = len(spec.label_times)
    else:
        teacher = builder.create_teacher(model, config)
        spec = pairs_builder.specification(teacher, own.num_trajectories)
        m, calls = own.num_times, teacher.sampler.nfe * own.num_trajectories
        volume = spec.record.itemsize * spec.count / 1e6
        source = (
            f"{spec.count} trajectories of {m} points drawn by {own.teacher} ({calls} network calls, {volume:.4g} MB)"
        )
    seen = training.num_steps * training.batch_size
    return (
        f"DSNO: {source}, times {', '.join(f'{time:.4g}' for time in spec.label_times)}; mixing {own.mixing}, "
        f"{training.num_steps} updates of {training.batch_size} trajectories ({seen / np.float64(spec.count):.3g} "
        f"passes), each the work of {m} network calls with a gradient; sampling is 1 network call, the work of {m}."
    )
