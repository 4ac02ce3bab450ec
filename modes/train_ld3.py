"""config.training.method=ld3: the grid of a few-step solver, and more of it, from a teacher's images."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import ld3 as builder
from builders.classifier_free import calls_per_evaluation
from builders.distillation import keep_plan
from builders.draw import to_pixels
from builders.model import Model, load
from reports.atomic import write_text
from reports.grids import comparison_grid
from reports.images import write_png
from reports.plots import plot_grids, plot_learning
from reports.progress import Progress
from sampling import learned
from training import gauss_newton, ld3, ld3_learning, ld3_published, loop
from training.ld3 import Params

SHOWN = 8  # images before and after
Keep = Callable[[Params, float, int], None]  # (params, loss, updates)
Curves = dict[str, tuple[list[int], list[float]]]  # name -> updates and losses


def train(config: ConfigDict, workdir: Path, checkpoint: str = "") -> None:
    """Loads the model and learns for it (`learn`)."""
    learn(*_open(config, checkpoint, workdir), workdir)


def learn(model: Model, config: ConfigDict, task: builder.Task, workdir: Path) -> None:
    """Writes W/ld3/<name>.json, the schedule, with pictures beside it; a run that was killed goes on.

    <name> is what is learned and the number of steps, as ld3_5. Teacher pairs stay in W/pairs, or come from
    config.ld3.pairs.
    """
    folder = workdir / "ld3"
    settings = {"ld3": config.ld3.to_dict(), "steps": task.num_steps, "seed": config.seed}
    keep_plan(folder / f"state_{task.name}", settings | {"weights": model.weights_hash})
    logging.info("%s", plan(task, config))
    pairs, teacher = builder.create_pairs(model, config, workdir / "pairs")
    task = builder.begin(model, config, task, pairs)
    path = folder / f"{task.name}.json"
    facts = {key: config.ld3[key] for key in ("learn", "loss", "preset", "num_train")}
    facts |= {"start": task.start, "seed": config.seed}

    def keep(params: Params, loss: float, step: int) -> None:
        """The best so far, as a file that can be sampled at once."""
        told = facts | {"updates": step, "valid_loss": loss}
        write_text(path, learned.to_json(builder.schedule_of(task, params, model, teacher, told)))

    learn = _published if config.ld3.preset == "paper" else _default
    params, curves = learn(task, config, pairs, folder / f"state_{task.name}", keep)
    _report(task, config, model, pairs, params, path, curves)


def _open(config: ConfigDict, checkpoint: str, workdir: Path | None) -> tuple[Model, ConfigDict, builder.Task]:
    """The model, its config (what a weight file says of itself is in it), and the task; everything is checked."""
    model = load(config, checkpoint, workdir=workdir)
    config = copy.deepcopy(model.config)
    model = dataclasses.replace(model, config=config)
    return model, config, builder.create_task(model, config)


def show_plan(config: ConfigDict, checkpoint: str, workdir: Path | None) -> None:
    """--dry_run: the plan, after every check that needs no teacher."""
    _, config, task = _open(config, checkpoint, workdir)
    logging.info("%s", plan(task, config))


def plan(task: builder.Task, config: ConfigDict) -> str:
    """What will be learned and what it costs, before anything is compiled."""
    own, student = config.ld3, task.problem.student
    calls = student.calls(task.num_steps, task.problem.space.to_zero) * calls_per_evaluation(config)
    size = min(own.batch_size or own.num_train, own.num_train)
    pairs = f"{own.num_train}+{own.num_valid} pairs"
    pairs += f" of {own.pairs}" if own.pairs else f" drawn by {own.teacher} in {own.teacher_steps} steps"
    if own.preset == "paper":
        return f"{task.name}: the published loop, {student.solver}, {calls} network calls an image, {pairs}."
    cost = f"{calls * size} network calls, as many again with a gradient"
    if own.optimizer == "gauss_newton":
        cost = f"{calls * size * (1 + len(gauss_newton.free(task.params)))} network calls"
    return (
        f"{task.name}: {student.solver}, {calls} network calls an image, {config.training.num_steps} updates of {size} "
        f"images, {pairs}; an update costs {cost}."
    )


def _default(
    task: builder.Task, config: ConfigDict, pairs: ld3_learning.Pairs, state: Path, keep: Keep
) -> tuple[Params, Curves]:
    """Adam on exact gradients: the best parameters, and the losses by update."""
    settings = builder.learning_settings(config)
    optimizer = None
    if config.ld3.optimizer == "adam":
        optimizer = loop.create_optimizer(num_steps=settings.num_steps, **config.optim.to_dict())
    with Progress(settings.num_steps, f"learning {task.name}", "update") as progress:

        def on_look(step: int, train: float, valid: float) -> None:
            learned_from = f"loss {train:.4g}, " if np.isfinite(train) else ""
            logging.info("update %d: %son unseen noise %.4g", step, learned_from, valid)

        def on_update(loss: float) -> None:
            progress.update()

        best = ld3_learning.learn(
            task.problem, task.params, pairs, settings, optimizer, state, keep, on_update, on_look
        )
    lines = ld3_learning.read_log(state)
    trained = [line for line in lines if "train" in line]
    return best, {
        "learned from": ([line["step"] for line in trained], [line["train"] for line in trained]),
        "unseen": ([line["step"] for line in lines], [line["valid"] for line in lines]),
    }


def _published(
    task: builder.Task, config: ConfigDict, pairs: ld3_learning.Pairs, state: Path, keep: Keep
) -> tuple[Params, Curves]:
    """The published loop, which judges on noise that moves too."""
    settings = builder.published_settings(config, task, pairs.noise.shape[1:])
    noise = np.concatenate([pairs.noise, pairs.valid_noise])
    targets = np.concatenate([pairs.targets, pairs.valid_targets])
    problem = task.problem

    def loss(params: Params, z: Any, target: Any) -> Any:
        return ld3.loss(problem.objective, problem.space, problem.student, problem.denoiser, params, z, target)

    looks = sum(settings.rounds) * (1 + -(-len(pairs.noise) // settings.batch_size))
    best = [np.inf]
    with Progress(looks, f"learning {task.name}", "look") as progress:

        def on_look(look: ld3_published.Look) -> None:
            progress.update()
            if look.valid < best[0]:
                best[0] = look.valid
                params = {"logits": jnp.asarray(look.logits), "shifts": jnp.asarray(look.shifts)}
                keep(params, look.valid, look.iteration)

        learner = ld3_published.Learner(loss, task.params, noise, targets, len(pairs.noise), settings, on_look)
        found = learner.run(state)
    keep(found.best, min(look.valid for look in found.looks), found.looks[-1].iteration)
    trained = [look for look in found.looks if np.isfinite(look.train)]
    return found.best, {
        "learned from": ([look.iteration for look in trained], [look.train for look in trained]),
        "unseen, but moved": ([look.iteration for look in found.looks], [look.valid for look in found.looks]),
    }


def _report(
    task: builder.Task,
    config: ConfigDict,
    model: Model,
    pairs: ld3_learning.Pairs,
    params: Params,
    path: Path,
    curves: Curves,
) -> None:
    """Pictures, and the one line that says what was gained."""
    schedule, folder = learned.read(str(path)), path.parent
    before, images_before = builder.distances(task, task.params, pairs, config.ld3.microbatch)
    after, images_after = builder.distances(task, params, pairs, config.ld3.microbatch)
    calls = task.problem.student.calls(task.num_steps, task.problem.space.to_zero) * calls_per_evaluation(config)
    title = f"{task.name}, {schedule.solver}, {calls} calls"
    plot_learning(folder / f"{task.name}_loss.png", curves, f"loss ({config.ld3.loss}) of {title}")
    grids = builder.usual_grids(task, model, config, schedule.grid)
    plot_grids(folder / f"{task.name}_grid.png", list(grids.items()), title)
    count = min(SHOWN, len(pairs.valid_noise))
    shown = {
        "teacher": pairs.valid_targets[:count],
        f"{schedule.solver}, {task.num_steps} steps, {task.start} grid": images_before(count),
        f"{task.name}": images_after(count),
    }
    rows = {name: to_pixels(model, images) for name, images in shown.items()}
    caption = f"equal noise, never learned from; distance to the teacher {before:.4f} before, {after:.4f} after"
    write_png(folder / f"{task.name}_before_after.png", comparison_grid(rows, caption=caption))
    logging.info(
        "%s: distance to the teacher on %d unseen noises %.4f -> %.4f (%.2g times closer) at %d network calls. "
        "Sample it: --method=%s --config.sampling.schedule=%s",
        task.name,
        len(pairs.valid_noise),
        before,
        after,
        before / after,
        calls,
        schedule.method,
        path,
    )
