"""From config.distill and config.consistency to teachers, stages and targets; from a trained student to its file."""

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import models
from array_types import Table
from builders.config import shipped
from builders.draw import sample, to_pixels
from builders.grids import noise_range, prior_scale
from builders.model import Model, create_denoiser, create_network, load
from builders.training import create_batches, data_source
from checkpoints import native
from models import classifier_free
from models.denoiser import Denoiser
from reports import rows
from reports.grids import comparison_grid
from reports.images import write_png
from reports.progress import format_seconds
from sampling import time_grids
from sampling.base import TimeGrid
from training import consistency
from training import progressive_distillation as pd
from training.devices import whole
from training.loop import BatchSource

ROWS = "distillation.jsonl"
SHOWN = 8  # images in the picture of a stage
DATA = ("teacher", "images")
GUIDANCE_LAYER = "guidance_emb"  # of models.v_diffusion


def load_teacher(config: ConfigDict, checkpoint: str, workdir: Path) -> Model:
    """The model to be distilled: --checkpoint, config.distill.teacher, or what the config samples."""
    return load(config, checkpoint or shipped(config.distill.teacher), workdir=workdir)


def teacher_grid(config: ConfigDict, teacher: Model) -> Table:
    """The noise scales of the first teacher, config.distill.start_steps + 1 of them, the last 0.

    config.distill.grid: a name of `sampling.time_grids`, or "time": even in SDE time down to t = 0, where noise is
    taken to be none, as published. A teacher that is a student itself keeps its own.
    """
    distill, student = config.distill, teacher.config.student
    if student.method:
        if student.num_steps != distill.start_steps or student.method != "distilled":
            raise ValueError(
                f"The teacher is itself a student ({student.method}, {student.num_steps} steps); set "
                f"--config.distill.start_steps={student.num_steps}, or distill a model that takes any steps."
            )
        return grid_of(student.grid)
    if distill.start_steps < 1:
        raise ValueError(f"config.distill.start_steps={distill.start_steps} must be at least 1.")
    if distill.grid == "time":
        s = teacher.sde.noise_scale(np.linspace(1, 0, distill.start_steps + 1))
        s[-1] = 0.0
        return s
    s_max, s_min = noise_range(config, teacher.sde)
    return time_grids.make(distill.grid, distill.start_steps, s_max, s_min, teacher.sde).s


def create_stages(config: ConfigDict, teacher: Model) -> list[pd.Stage]:
    """The stages of config.distill: before the halvings one at equal steps, if the student predicts something else."""
    grid = teacher_grid(config, teacher)
    found = pd.stages(grid, config.distill.end_steps, config.distill.factor)
    otherwise = config.distill.predicts or guidance_range(config)
    return ([pd.Stage(grid, 1)] if otherwise else []) + found


def guidance_range(config: ConfigDict) -> tuple[float, float] | None:
    """The guidance scales that the student is told, config.distill.guidance; None without.

    Raises ValueError for a range that is none, and for a network without a class that means none or a place to be told.
    """
    scales = tuple(map(float, config.distill.guidance))
    if not scales:
        return None
    where = f"config.distill.guidance={scales}"
    if len(scales) != 2 or not scales[0] < scales[1]:
        raise ValueError(f"{where} must be (low, high), guidance scales with low < high, such as (0.0,4.0).")
    if config.model.name != "v_diffusion":
        raise ValueError(
            f"{where}: config.model.name={config.model.name!r} has no layer that is told a guidance scale; only "
            "'v_diffusion' has."
        )
    if not config.data.num_classes or config.data.null_class < 0:
        raise ValueError(
            f"{where} needs a class that means none: train with one, and name it with --config.data.null_class "
            f"({config.data.num_classes} is a class of zeros to this network)."
        )
    return scales


def updates_of(config: ConfigDict, stages: list[pd.Stage]) -> list[int]:
    """Updates of each stage: config.distill.updates, or config.training.num_steps for all of them."""
    updates = tuple(config.distill.updates) or (config.training.num_steps,) * len(stages)
    if len(updates) != len(stages):
        raise ValueError(
            f"config.distill.updates={updates} has {len(updates)} numbers for {len(stages)} stages "
            f"({', '.join(str(stage.num_steps) for stage in stages)} steps); give one for each."
        )
    return list(updates)


def settings_of(config: ConfigDict, first: bool) -> pd.Distillation:
    """config.distill; only the first teacher, which takes any steps, may step otherwise than by DDIM."""
    distill = config.distill
    solver = distill.solver if first else "ddim"
    return pd.Distillation(distill.weighting, distill.target, solver, distill.clip, config.data.centered)


def check_data(config: ConfigDict) -> bool:
    """True where targets come from images. Raises ValueError for an unknown config.distill.data."""
    if config.distill.data not in DATA:
        raise ValueError(f"config.distill.data={config.distill.data!r} is unknown; choose one of {DATA}.")
    return config.distill.data == "images"


def create_targets(
    config: ConfigDict, stage: pd.Stage, teacher: Model, first: bool, images: BatchSource | None
) -> pd.FromImages | pd.FromPaths:
    """The batches of a stage, from images or from the teacher's own paths (config.distill.data)."""
    settings, denoiser, scales = settings_of(config, first), whole(teacher.denoiser), guidance_range(config)
    if scales and first:  # later teachers are students, who are told the scale
        denoiser = classifier_free.guided_teacher(denoiser, config.data.null_class)
    conditions = pd.Conditions(config.data.num_classes, scales)
    if images is not None:
        return pd.FromImages(settings, stage, denoiser, images, config.seed, conditions)
    scale = prior_scale(teacher.sde, TimeGrid(stage.grid, stage.grid))
    batch_size = config.training.batch_size
    return pd.FromPaths(settings, stage, denoiser, batch_size, teacher.shape, scale, config.seed, conditions)


def create_images(config: ConfigDict) -> BatchSource | None:
    """The images of config.data, where targets come from images; None where they need none."""
    return create_batches(config) if check_data(config) else None


def consistency_settings(config: ConfigDict, teacher: Model) -> consistency.ConsistencyLoss:
    s_max, s_min = noise_range(config, teacher.sde)
    own = {key: value for key, value in config.consistency.to_dict().items() if key not in ("mids", "teacher_step")}
    return consistency.ConsistencyLoss(**own, s_min=s_min, s_max=s_max, centered=config.data.centered)


def create_pairs(
    config: ConfigDict, settings: consistency.ConsistencyLoss, teacher: Model, images: BatchSource | None
) -> consistency.FromImages | consistency.FromPaths:
    """The batches of consistency training, from images or from the teacher's own paths (config.distill.data)."""
    classes, denoiser = config.data.num_classes, whole(teacher.denoiser)
    if images is not None:
        stepping = denoiser if config.consistency.teacher_step else None
        return consistency.FromImages(settings, images, config.seed, stepping, bool(classes))
    grid = teacher_grid(config, teacher)
    scale = prior_scale(teacher.sde, TimeGrid(grid, grid))
    batch_size = config.training.batch_size
    return consistency.FromPaths(settings, grid, denoiser, batch_size, teacher.shape, scale, config.seed, classes)


# --- Students ---


def grid_text(s: Table) -> str:
    """Noise scales as config.sampling.grid takes them, without loss."""
    return ",".join(repr(float(value)) for value in s)


def grid_of(text: str) -> Table:
    return np.array([float(part) for part in text.split(",")])


def student_config(config: ConfigDict, method: str, s: Table, s_min: float) -> ConfigDict:
    """The config that a student's file carries: what it is called by, at which noise scales s (the last 0)."""
    own = copy.deepcopy(config)
    if config.distill.predicts == "edm":
        own.model.update(scaling="edm", scale_by_sigma=False, predicts="x0", told="")
    elif config.distill.predicts:
        own.model.predicts = config.distill.predicts
    if scales := guidance_range(config):
        own.model.guidance_embedding = True
        own.student.guidance = grid_text(np.array(scales))
        own.guidance.cfg_scale = sum(scales) / 2  # until another one is asked for
    n = len(s) - 1
    own.student.update(method=method, num_steps=n, grid=grid_text(s), s_min=s_min)
    own.sampling.update(method=method, num_steps=n, grid=grid_text(s), start_sigma=0.0)
    own.eval.compare, own.checkpoint = "", ""
    return own


def template(config: ConfigDict, teacher: Model) -> Denoiser:
    """The first student: the teacher's network and parameters, with other conventions if config.distill says so.

    The layer that is told a guidance scale begins as nothing.
    """
    scales = guidance_range(config)
    if not (config.distill.predicts or scales):
        return teacher.denoiser
    own, params = student_config(config, "distilled", np.array([1.0, 0.0]), 0.0), teacher.denoiser.params
    if scales:
        shapes = models.param_shapes(create_network(own), teacher.shape)
        new = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[GUIDANCE_LAYER])
        params = {**params, GUIDANCE_LAYER: new}
    return create_denoiser(own, params)


def as_student(config: ConfigDict, template: Denoiser, params: Any) -> Model:
    """The student of `student_config`, ready to be sampled."""
    return Model(dataclasses.replace(template, params=jax.tree.map(jnp.asarray, params)), config)


def write_student(path: Path, config: ConfigDict, params: Any, step: int, teacher: Model) -> None:
    """A file that is sampled by itself: averaged weights in half precision, with their number of steps and schedule."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = config.student.to_dict() | {"teacher": teacher.weights_hash, "parametrisation": _predicts(config)}
    values = jax.tree.map(np.asarray, params)
    native.write(path, values, json.loads(config.to_json_best_effort()), {"step": step, "student": facts}, half=True)
    logging.info("A student of %d steps: python main.py --checkpoint %s --workdir W", facts["num_steps"], path)


def _predicts(config: ConfigDict) -> str:
    return config.model.predicts if config.model.scaling == "none" else f"x0 under the scaling {config.model.scaling}"


class Judge:
    """A fixed set of noise: how far a student is from its first teacher, with a picture and a row."""

    def __init__(self, teacher: Model, grid: Table, solver: str, folder: Path, count: int = 64):
        plain = copy.deepcopy(teacher.config)
        plain.eval.compare, plain.guidance.kind = "", "none"
        if scales := guidance_range(plain):
            plain.guidance.cfg_scale = sum(scales) / 2  # what the student is told where nothing else is asked for
        self._teacher = dataclasses.replace(teacher, config=plain)
        self._folder, self._count, self._solver = folder, count, solver
        self._reference = self._draw(solver, grid)

    def _draw(self, method: str, s: Table) -> Any:
        edit = {"method": method, "grid": grid_text(s), "num_steps": 0, "start_sigma": 0.0}
        if self._teacher.config.student.method:
            edit = {}
        return sample(self._teacher, edit, range(self._count))

    def __call__(self, student: Model, facts: dict[str, Any]) -> dict[str, Any]:
        """Writes W/pictures/steps_<N>.png and a line of W/distillation.jsonl; returns the row."""
        n = student.config.student.num_steps
        drawn = sample(student, {}, range(self._count))
        row = {"steps": n, "calls": drawn.nfe, "student_to_teacher": _rmse(drawn.images, self._reference.images)}
        pictures = {f"teacher, {self._solver}, {self._reference.nfe} calls": self._reference.images}
        if not self._teacher.config.student.method:
            ddim = self._draw("ddim", grid_of(student.config.student.grid))
            row["ddim_to_teacher"] = _rmse(ddim.images, self._reference.images)
            pictures[f"teacher, ddim, {ddim.nfe} calls"] = ddim.images
        pictures[f"student, {drawn.nfe} calls"] = drawn.images
        shown = {name: to_pixels(student, images[:SHOWN]) for name, images in pictures.items()}
        path = self._folder / "pictures" / f"steps_{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, comparison_grid(shown, caption=f"equal noise, seed {student.config.seed}"))
        config = self._teacher.config
        row |= facts | {"n": self._count, "seed": config.seed, "checkpoint": self._teacher.weights_hash[:12] or "-"}
        rows.append_row(
            self._folder / ROWS, row | {"command": f"--mode=train {config.training.method}", "machine": rows.machine()}
        )
        logging.info("Distances to the teacher (RMSE, data range): %s; picture %s", row, path)
        return row


def _rmse(a: np.ndarray, b: np.ndarray) -> float:
    return round(float(np.sqrt(np.mean((a - b) ** 2))), 5)


@dataclasses.dataclass(eq=False)
class Timed:
    """A source of batches that says, after a few updates, how long the rest takes."""

    source: BatchSource
    total: int  # updates
    further: int = 0  # updates of the stages after this one
    clock: Callable[[], float] = time.monotonic
    _times: list[float] = dataclasses.field(default_factory=list)

    def batch(self, step: int) -> dict[str, Any]:
        self._times.append(self.clock())
        if len(self._times) == 4:  # the first updates compile
            seconds = self._times[3] - self._times[2]
            here, then = seconds * (self.total - step), seconds * self.further
            rest = f", {format_seconds(then)} for the stages after it" if self.further else ""
            logging.info("%.2g s an update: about %s for this stage%s.", seconds, format_seconds(here), rest)
        return self.source.batch(step)


def data_words(config: ConfigDict) -> str:
    """What the targets are made from, for the plan."""
    return f"images of {data_source(config)}" if check_data(config) else "the teacher's own paths (no images)"


def keep_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Writes W/plan.json at the first start; raises ValueError if a run that was begun there had another plan."""
    path, text = folder / "plan.json", json.dumps(plan, indent=1, sort_keys=True)
    if path.exists() and path.read_text() != text:
        before = json.loads(path.read_text())
        changed = [key for key in plan if before.get(key) != plan[key]]
        raise ValueError(
            f"{path}: the run in this workdir was begun with other settings ({', '.join(changed)}: "
            f"{[before.get(key) for key in changed]}, now {[plan[key] for key in changed]}); use another --workdir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
