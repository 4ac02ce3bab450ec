"""config.training.method=consistency: from a model of many steps to one that is called once or twice."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import distillation
from builders.model import Model
from builders.training import run_loop
from modes import estimate
from training import consistency
from training.state import TrainState

TEACHER_CALLS = 2  # an image, on its own paths; none where targets come from images without a teacher's step


def train(config: ConfigDict, workdir: Path, checkpoint: str = "") -> None:
    """Trains from the teacher's weights; writes W/checkpoints/consistency.safetensors, pictures and rows as it goes."""
    teacher = _open(config, checkpoint, workdir)
    config = copy.deepcopy(teacher.config)  # what a weight file says of itself is in it
    settings, images = distillation.consistency_settings(config, teacher), distillation.create_images(config)
    source = distillation.create_pairs(config, settings, teacher, images)
    grid = distillation.teacher_grid(config, teacher)
    # Noise scales of the calls: that of the prior, those of config.consistency.mids, and none.
    scales = np.array([grid[0], *(mid / settings.unit for mid in config.consistency.mids), 0.0])
    own = distillation.student_config(config, "consistency", scales, settings.s_min)
    training = config.training
    distillation.keep_plan(
        workdir,
        {
            "consistency": config.consistency.to_dict(),
            "data": config.distill.data,
            "grid": distillation.grid_text(grid),
            "batch_size": training.batch_size,
            "teacher": teacher.weights_hash,
            "seed": config.seed,
        },
    )
    logging.info("%s", describe(config, teacher))
    judge = distillation.Judge(teacher, grid, "heun", workdir)

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        return consistency.loss(settings, dataclasses.replace(teacher.denoiser, params=params), batch)

    def snapshot(state: TrainState) -> None:
        """The averaged weights as a file of their own; the distance and picture of a single call."""
        once = copy.deepcopy(own)
        once.sampling.num_steps = once.student.num_steps = 1
        once.student.grid = distillation.grid_text(np.array([grid[0], 0.0]))
        judge(distillation.as_student(once, teacher.denoiser, state.ema_params), {"updates": int(state.step)})
        path = workdir / "checkpoints" / "consistency.safetensors"
        distillation.write_student(path, own, state.ema_params, int(state.step), teacher)

    timed = distillation.Timed(source, training.num_steps)
    run_loop(config, loss, teacher.denoiser.params, timed, workdir, snapshot, "consistency training")
    if source.skipped.total():
        logging.warning("%d images were left out: the teacher's path was not finite.", source.skipped.total())


def show_plan(config: ConfigDict, checkpoint: str, workdir: Path | None) -> None:
    """--dry_run: updates, calls and time, after every check that needs no image."""
    teacher = _open(config, checkpoint, workdir or Path("."))
    config = teacher.config
    distillation.consistency_settings(config, teacher)
    images = config.training.num_steps * config.training.batch_size
    time = estimate.training(teacher, (1 + TEACHER_CALLS) * images, images)
    logging.info("%s All of it: %s.", describe(config, teacher), time)


def _open(config: ConfigDict, checkpoint: str, workdir: Path) -> Model:
    teacher = distillation.load_teacher(config, checkpoint, workdir)
    if teacher.config.student.method:
        raise ValueError("The teacher is itself a student; consistency training needs a model that takes any steps.")
    if teacher.config.distill.guidance:
        raise ValueError("config.distill.guidance is of progressive distillation; consistency students are not guided.")
    return teacher


def describe(config: ConfigDict, teacher: Model) -> str:
    """What will run and what it costs, before anything is compiled."""
    updates, batch = config.training.num_steps, config.training.batch_size
    return (
        f"Consistency training of {teacher.num_params / 1e6:.2f} M parameters: {updates} updates of {batch} images "
        f"({updates * batch} images from {distillation.data_words(config)}); each costs 2 network calls, one of them "
        f"with a gradient, and about {TEACHER_CALLS} teacher calls."
    )
