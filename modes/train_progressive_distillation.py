"""config.training.method=progressive_distillation: from a teacher of many steps to a student of few, stage by stage."""

import copy
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from builders import distillation
from builders.model import Model
from builders.training import run_loop
from modes import estimate
from training import progressive_distillation as pd
from training.state import TrainState


def train(config: ConfigDict, workdir: Path, checkpoint: str = "") -> None:
    """Runs all stages of config.distill; a run that was killed goes on in the middle of its stage, bit for bit.

    Each stage leaves its student in W/checkpoints/student_<N>.safetensors, a picture in W/pictures/steps_<N>.png and a
    row in W/distillation.jsonl; its state is in W/stages.
    """
    teacher, config, stages, updates = _open(config, checkpoint, workdir)
    images = distillation.create_images(config)
    distillation.keep_plan(workdir, _plan(config, stages, updates, teacher))
    logging.info("%s", describe(config, stages, updates, teacher))
    judge = distillation.Judge(teacher, stages[0].grid, config.distill.solver, workdir)
    template = distillation.template(config, teacher)

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        return pd.loss(dataclasses.replace(template, params=params), batch)

    current = dataclasses.replace(teacher, denoiser=template)
    for number, stage in enumerate(stages):
        of_stage = copy.deepcopy(config)
        of_stage.training.num_steps = updates[number]
        source = distillation.create_targets(config, stage, current if number else teacher, number == 0, images)
        timed = distillation.Timed(source, updates[number], sum(updates[number + 1 :]))
        folder = workdir / "stages" / f"{number}_steps_{stage.num_steps}"
        own = distillation.student_config(config, "distilled", stage.student_grid, 0.0)
        state = run_loop(
            of_stage, loss, current.denoiser.params, timed, folder, _nothing, f"{stage.num_steps}-step student"
        )
        if source.skipped.total():
            logging.warning("%d images were left out: the teacher's target was not finite.", source.skipped.total())
        current = distillation.as_student(own, template, state.ema_params)
        path = workdir / "checkpoints" / f"student_{stage.num_steps}.safetensors"
        if not path.exists() or number == len(stages) - 1:  # which may have been trained on
            judge(current, {"updates": int(state.step), "skipped": source.skipped.total()})
            distillation.write_student(path, current.config, current.denoiser.params, int(state.step), teacher)


def show_plan(config: ConfigDict, checkpoint: str, workdir: Path | None) -> None:
    """--dry_run: stages, updates, calls and time, after every check that needs no image."""
    teacher, config, stages, updates = _open(config, checkpoint, workdir or Path("."))
    images = sum(updates) * config.training.batch_size
    time = estimate.training(teacher, _calls(config) * images, images)
    logging.info("%s All of it: %s.", describe(config, stages, updates, teacher), time)


class _Run(NamedTuple):
    teacher: Model
    config: ConfigDict
    stages: list[pd.Stage]
    updates: list[int]


def _open(config: ConfigDict, checkpoint: str, workdir: Path) -> _Run:
    """The teacher, and what follows from it and the config; everything is checked."""
    teacher = distillation.load_teacher(config, checkpoint, workdir)
    config = copy.deepcopy(teacher.config)  # what a weight file says of itself is in it
    stages = distillation.create_stages(config, teacher)
    distillation.settings_of(config, first=True)
    return _Run(teacher, config, stages, distillation.updates_of(config, stages))


def _calls(config: ConfigDict) -> int:
    """Teacher calls an image, at most."""
    guided = 2 if config.distill.guidance else 1
    return config.distill.factor * guided * (2 if config.distill.solver == "heun" else 1)


def _nothing(state: TrainState) -> None:
    """The picture of a stage is drawn when it ends."""


def _plan(config: ConfigDict, stages: list[pd.Stage], updates: list[int], teacher: Any) -> dict[str, Any]:
    """What a resumed run must agree on."""
    return {
        "distill": {key: value for key, value in config.distill.to_dict().items() if key not in ("teacher", "updates")},
        "grid": distillation.grid_text(stages[0].grid),
        "batch_size": config.training.batch_size,
        "updates": updates[: len(stages) - 1],  # of finished stages; the last may be trained on
        "teacher": teacher.weights_hash,
        "seed": config.seed,
    }


def describe(config: ConfigDict, stages: list[pd.Stage], updates: list[int], teacher: Any) -> str:
    """What will run and what it costs, before anything is compiled."""
    batch, calls = config.training.batch_size, _calls(config)
    chain = " -> ".join(str(n) for n in [len(stages[0].grid) - 1, *(stage.num_steps for stage in stages)])
    total = sum(updates)
    return (
        f"Progressive distillation of {teacher.num_params / 1e6:.2f} M parameters, steps {chain}: {len(stages)} "
        f"stage(s), {total} updates of {batch} images ({total * batch} images from {distillation.data_words(config)}); "
        f"each image costs up to {calls} teacher calls and one gradient, an update about {(calls + 3) * batch} network "
        "calls."
    )
