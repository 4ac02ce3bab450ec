"""From config.ld3 to what LD3 learns with: student, first grid, teacher pairs, objective; and to its schedule."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from array_types import Table
from builders import pairs as pairs_of
from builders.classifier_free import null_conditions
from builders.conditions import Take
from builders.config import changed, shipped
from builders.draw import sample
from builders.grids import create_grid, noise_range, prior_scale
from builders.model import Model
from builders.perceptual import load_perceptual
from builders.samplers import class_labels, denoiser_of, network_conditions, searching
from data import store
from sampling import learned, multistep, single_step, time_grids
from sampling.base import TimeGrid
from sampling.learned import Schedule
from training import devices, ld3, ld3_learning, ld3_published
from training.ld3 import Params

PRESETS = ("", "paper")
OPTIMIZERS = ("adam", "gauss_newton")
COMPARED = ("drawn", "image")
AUTO = ("edm", "logsnr", "dmn", "gits")  # among which config.ld3.start="auto" chooses
_OTHER_NOISE = 7919  # added to config.seed: pairs to learn from begin from other noise than the images one draws
_BELOW = 0.5  # a learned grid may call the network at half of its least noise scale, no further


class Task(NamedTuple):
    """What is learned, and where it begins."""

    problem: ld3_learning.Problem
    params: Params  # at which the student is the solver on the grid it begins from
    num_steps: int
    method: str  # key of ld3.LEARNED
    start: str  # name of the grid it begins from

    @property
    def name(self) -> str:
        """Of its files, such as ld3_5."""
        return f"{self.method}_{self.num_steps}"


def create_student(config: ConfigDict) -> ld3.Student:
    """Raises ValueError for a solver that cannot be learned, naming those that can."""
    found, known = config.ld3.solver, sorted({*multistep.SOLVERS, *single_step.STEPS})
    if found not in known:
        raise ValueError(f"config.ld3.solver={found!r} cannot be learned; choose one of {known}.")
    return ld3.Student(found, config.ld3.order, config.ld3.variant, config.ld3.preset == "paper" and found == "unipc")


def create_task(model: Model, config: ConfigDict) -> Task:
    """The student of config.ld3 with sampling.num_steps steps, at the grid config.ld3.start.

    "auto" stands for the first of its grids until there are pairs to choose by (`begin`). Raises ValueError that names
    the key for what does not go together.
    """
    own, n = config.ld3, config.sampling.num_steps
    if own.preset not in PRESETS:
        raise ValueError(f"config.ld3.preset={own.preset!r} is unknown; choose one of {PRESETS}.")
    if own.loss not in (known := sorted([*ld3.DISTANCES, "lpips"])):
        raise ValueError(f"config.ld3.loss={own.loss!r} is unknown; choose one of {known}.")
    if own.optimizer not in OPTIMIZERS:
        raise ValueError(f"config.ld3.optimizer={own.optimizer!r} is unknown; choose one of {OPTIMIZERS}.")
    if own.compares not in COMPARED or (own.compares == "image" and model.codec is None):
        raise ValueError(
            f"config.ld3.compares={own.compares!r} must be one of {COMPARED}, 'image' for a latent model that has a "
            "decoder."
        )
    if own.optimizer == "gauss_newton" and own.compares == "image":
        raise ValueError(
            "config.ld3.compares='image' needs the gradient of the decoder; choose --config.ld3.optimizer=adam."
        )
    if own.optimizer == "gauss_newton" and (own.loss != "l2" or own.radius):
        raise ValueError(
            f"config.ld3.optimizer='gauss_newton' lowers squared distances of noise that stays: set config.ld3.loss=l2 "
            f"(it is {own.loss!r}) and config.ld3.radius=0 (it is {own.radius:g})."
        )
    if n < 2:
        raise ValueError(f"--steps={n}: a grid of fewer than 2 steps has nothing to learn; --steps=5, for example.")
    if config.guidance.kind != "none":
        raise ValueError(
            f"config.guidance.kind={config.guidance.kind!r}: LD3 learns without guidance; its schedules are for the "
            "model alone. Leave the guidance out."
        )
    student = create_student(config)
    paper = own.preset == "paper"
    start = AUTO[0] if own.start == "auto" else own.start
    s = first_grid(model, config, start)
    to_zero = own.to_zero and not paper
    _, s_min = noise_range(_plain(config), model.sde)
    if paper:
        space = ld3.Space(model.sde, float(s[0]), s_min, own.spacing, False, own.share, "released")
        start = "even"  # in lam or time, as published
    else:
        space = ld3.Space(model.sde, float(s[0]), _BELOW * s_min, own.spacing, to_zero, own.share, own.bound)
    params = _initial(space, student, n, own.learn, None if paper else s)
    if student.solver in multistep.SOLVERS:
        multistep.table(student.solver, ld3.grid(space, params), **student.settings())  # its order fits the steps
    d = int(np.prod(model.shape))
    radius = own.radius * ld3.radius(model.shape, n)
    perceptual = own.loss == "lpips"
    # Perceptual distances are of images; the others may be of latents, which costs no decoder.
    codec = model.codec if own.compares == "image" or perceptual else None
    values = model.data_range if codec is None else (-1.0, 1.0)  # decoders put out images in [-1, 1]
    distance = load_perceptual(config.loss.weights, values) if perceptual else ld3.DISTANCES[own.loss]
    if not paper:  # the published loop, of two pairs at a time, keeps to one device
        codec, model = devices.whole(codec), dataclasses.replace(model, denoiser=devices.whole(model.denoiser))
    scales = np.full(2, space.s_max)
    objective = ld3.Objective(distance, prior_scale(model.sde, TimeGrid(scales, scales)), radius, codec=codec)
    logging.info("LD3: %d numbers are learned from %d of each image.", _count(params), d)
    problem = ld3_learning.Problem(objective, space, student, model.denoiser, _of_images(model, config))
    return Task(problem, params, n, own.learn, "given" if "," in start else start)


def begin(model: Model, config: ConfigDict, task: Task, pairs: ld3_learning.Pairs) -> Task:
    """`task` where config.ld3.start says; with "auto" at that grid of `AUTO` which has the least loss on the pairs to
    learn from. That costs their images on each, and the search of "gits"."""
    if config.ld3.start != "auto" or config.ld3.preset == "paper":
        return task
    problem, tried, losses = task.problem, {}, {}
    for start in AUTO:
        s = first_grid(model, config, start)
        tried[start] = _initial(problem.space, problem.student, task.num_steps, task.method, s)
        seen = pairs.noise, pairs.targets, config.ld3.microbatch, pairs.indices
        losses[start] = float(ld3_learning.judge(problem, tried[start], *seen).mean())
    start = min(losses, key=lambda start: np.nan_to_num(losses[start], nan=np.inf))
    said = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
    logging.info("%s begins from the grid %s (losses: %s).", task.name, start, said)
    return task._replace(params=tried[start], start=start)


def _initial(space: ld3.Space, student: ld3.Student, n: int, learn: str, s: Table | None) -> Params:
    """float32, as they are learned; s [N + 1] is the grid, None the even one."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), ld3.initial(space, student, n, learn, s))


def first_grid(model: Model, config: ConfigDict, start: str) -> Table:
    """The noise scales [N + 1] of the grid `start`; the last one is a placeholder where the grid ends at 0.

    A named grid has its N intervals above the least noise scale, so that no call is spent there from the start.
    """
    n = config.sampling.num_steps
    if start in time_grids.NOISE_GRIDS or start in time_grids.CLOCK_GRIDS:
        return time_grids.make(start, n, *noise_range(_plain(config), model.sde), model.sde, to_zero=False).s
    plain = _plain(config, method=config.ld3.solver, grid=start, num_steps=n)
    return create_grid(model, plain, searching(model, config)).s


def _count(params: Params) -> int:
    """Free numbers: the first logit cancels, as does their mean; the ends of the shifts change nothing."""
    n = len(params["logits"]) - 1
    return 2 * (n - 1) + sum(int(np.tri(n, leaf.shape[1]).sum()) for leaf in params.values() if leaf.ndim == 2)


def _of_images(model: Model, config: ConfigDict) -> Callable[[np.ndarray], Any] | None:
    """Numbers of images -> the network, told their classes or prompts, and guided; None where nothing is told."""
    if not network_conditions(model, config):
        null_conditions(model, config)  # guidance of a network without conditions is refused there
        return None
    if config.ld3.preset == "paper":
        raise ValueError(
            "config.ld3.preset='paper' is the published loop for networks that are told nothing; leave it empty to "
            "learn with classes or prompts."
        )
    of = denoiser_of(model, config)
    return lambda indices: of(Take([int(index) for index in indices], len(indices)))


def _plain(config: ConfigDict, **sampling: Any) -> ConfigDict:
    """The config of a run without guidance, start images or another solver's settings."""
    edits = {"order": 0, "variant": "", "start_image": "", "start_sigma": 0.0, "latents": ""} | sampling
    return changed(config, {f"sampling.{key}": value for key, value in edits.items()})


# --- teacher pairs ---------------------------------------------------------------------------------------------------


def create_pairs(model: Model, config: ConfigDict, folder: Path) -> tuple[ld3_learning.Pairs, dict[str, Any]]:
    """Noise and images of the teacher, and who the teacher is: the store config.ld3.pairs, or one drawn in `folder`.

    Raises ValueError where the store holds too few, or those of other weights.
    """
    own = config.ld3
    found = store.open_store(shipped(own.pairs)) if own.pairs else _drawn(model, config, folder)
    wanted = own.num_train + own.num_valid
    usable = found.usable()
    if len(usable) < wanted:
        raise ValueError(
            f"{found.folder} holds {len(usable)} pairs, config.ld3 asks for {own.num_train} to learn from and "
            f"{own.num_valid} to be judged on; lower num_train and num_valid, or make more with --mode=pairs."
        )
    if tuple(found.spec.shape) != model.shape or found.spec.teacher.get("sha256", model.weights_hash) != (
        model.weights_hash
    ):
        raise ValueError(
            f"config.ld3.pairs={own.pairs} holds pairs of another model ({found.spec.shape}, weights "
            f"{found.spec.teacher.get('sha256', '')[:12]}; this one is {model.shape}, {model.weights_hash[:12]}); make "
            "some of this one with --mode=pairs, or leave config.ld3.pairs empty."
        )
    said, own_conditions = found.spec.guidance, pairs_of.conditions(config, class_labels(config))
    if said != own_conditions:
        different = sorted(key for key in {**said, **own_conditions} if said.get(key) != own_conditions.get(key))
        raise ValueError(
            f"The pairs in {found.folder} were drawn under other conditions ({', '.join(different)}); make some with "
            "the same --labels, --prompts and --cfg_scale, or take another work directory."
        )
    # The first to learn from, the last to be judged on.
    indices = np.concatenate([usable[: own.num_train], usable[len(usable) - own.num_valid :]])
    records, noise = found.read(indices), np.asarray(found.noise(indices))
    images, n = records.images, own.num_train
    teacher = dict(sorted(found.spec.sampler.items())) | {"seed": found.spec.seed}
    return ld3_learning.Pairs(noise[:n], images[:n], noise[n:], images[n:], indices[:n], indices[n:]), teacher


def _drawn(model: Model, config: ConfigDict, folder: Path) -> store.Store:
    """Pairs by the teacher of config.ld3, kept in `folder`: a run that is resumed draws only what is missing."""
    own = config.ld3
    sampling = {"method": own.teacher, "num_steps": own.teacher_steps, "grid": own.teacher_grid}
    teacher = dataclasses.replace(model, config=_plain(config, **sampling))
    teacher.config.seed = config.seed + _OTHER_NOISE
    spec = store.Specification(
        shape=model.shape,
        count=own.num_train + own.num_valid,
        seed=teacher.config.seed,
        teacher={"sha256": model.weights_hash, "sde": learned.describe_sde(model.sde)},
        sampler=sampling,
        guidance=pairs_of.conditions(config, class_labels(config)),
        dtype="float32",
        shard_size=config.sampling.microbatch,
    )
    found = store.create(folder, spec)
    pending = found.pending()
    if pending:
        logging.info("Teacher: %s, %d steps, %d images.", own.teacher, own.teacher_steps, sum(map(len, pending)))
    for indices in pending:
        found.write(indices, sample(teacher, None, indices).images)
    return found


# --- settings and results --------------------------------------------------------------------------------------------


def learning_settings(config: ConfigDict) -> ld3_learning.Settings:
    own = config.ld3
    return ld3_learning.Settings(
        config.training.num_steps, own.batch_size, own.microbatch, own.valid_every, config.seed
    )


def published_settings(config: ConfigDict, task: Task, shape: tuple[int, ...]) -> ld3_published.Published:
    """Those of the published program for this many steps; config.ld3.rounds may shorten it."""
    if set(task.params) != {"logits", "shifts"}:
        raise ValueError(f"config.ld3.learn={task.method!r}: the published loop learns grids only; leave preset empty.")
    return ld3_published.settings_for(
        task.num_steps, int(np.prod(shape)), rounds=tuple(config.ld3.rounds), seed=config.seed, valid_batch_size=16
    )


def schedule_of(
    task: Task, params: Params, model: Model, teacher: dict[str, Any], training: dict[str, Any]
) -> Schedule:
    """What is written: grid and coefficients in float64, and for what they were learned."""
    student, space = task.problem.student, task.problem.space
    grid, coefficients = ld3.frozen(space, student, params)
    return Schedule(
        solver=student.solver,
        grid=grid,
        order=student.order,
        variant=student.variant,
        coefficients=coefficients,
        sde=learned.describe_sde(model.sde),
        checkpoint=model.weights_hash,
        teacher=teacher,
        guidance=_guidance(model.config),
        training=training,
    )


def _guidance(config: ConfigDict) -> dict[str, Any]:
    """What a schedule says of the guidance it was learned under."""
    found: dict[str, Any] = {"kind": config.guidance.kind}
    if config.guidance.cfg_scale == 1:
        return found
    interval = [str(end) if np.isinf(end) else end for end in config.guidance.cfg_interval]
    return found | {"cfg_scale": config.guidance.cfg_scale, "cfg_interval": interval}


def usual_grids(task: Task, model: Model, config: ConfigDict, learned_grid: TimeGrid) -> dict[str, Table]:
    """The learned grid beside those one would otherwise take, for a picture."""
    found: dict[str, Table] = {"learned": learned_grid.s}
    if not np.array_equal(learned_grid.s, learned_grid.s_model):
        found["told to the network"] = learned_grid.s_model
    found[f"begun from ({task.start})"] = np.asarray(ld3.frozen(*task.problem[1:3], task.params)[0].s)
    for name in ("edm", "logsnr", "time_quadratic"):
        plain = _plain(config, method="ddim", grid=name, num_steps=task.num_steps)
        found[name] = create_grid(model, plain, model.denoiser).s
    return found


def distances(
    task: Task, params: Params, pairs: ld3_learning.Pairs, microbatch: int
) -> tuple[float, Callable[[int], np.ndarray]]:
    """Root mean square distance to the teacher over the validation pairs, and the first images that make it."""
    problem = task.problem._replace(objective=task.problem.objective._replace(distance=ld3.l2, codec=None))
    seen = pairs.valid_noise, pairs.valid_targets, microbatch, pairs.valid_indices
    each = ld3_learning.judge(problem, params, *seen)

    def images(count: int) -> np.ndarray:
        told = problem.told(pairs.valid_indices, np.arange(count))
        return np.asarray(ld3_learning.run(told, params, jnp.asarray(pairs.valid_noise[:count])))

    return float(np.sqrt(each).mean()), images
