"""--mode=compare --train ld3: a schedule learned within part of the time, as one more way to sample.

LD3 with damped Gauss-Newton, which needs no gradient of the network, so that a call more costs what a call costs and
the time can be said before. How many pairs and updates follows from the time; all else is the config's (`config.ld3`).
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from builders import ld3
from builders.classifier_free import calls_per_evaluation
from builders.config import changed
from builders.grids import TEACHER_STEPS
from builders.model import Model
from builders.samplers import create_sampler
from modes import train_ld3
from reports.atomic import write_text
from reports.progress import format_seconds

METHODS = ("ld3",)
STEPS = 5  # of the schedule
POINT = f"method=ld3,num_steps={STEPS},learned_here"
SHARE = 0.5  # of the minutes, at most
EFFORTS = (
    (48, 16, 16, 8),
    (32, 16, 16, 6),
    (16, 8, 8, 6),
    (8, 8, 8, 4),
)  # pairs, others to judge by, an update, updates
PROGRAMS = 4  # that are compiled: teacher, search, student, and what judges it
_PLAIN = {  # what the time is reckoned for
    "training.method": "ld3",
    "sampling.num_steps": STEPS,
    "ld3.learn": "ld3",
    "ld3.preset": "",
    "ld3.loss": "l2",
    "ld3.compares": "drawn",
    "ld3.radius": 0.0,
    "ld3.optimizer": "gauss_newton",
    "ld3.valid_every": 1,
}


class Learning(NamedTuple):
    """What is learned: changes to the config, network calls an image of the schedule, seconds that it takes, about."""

    changes: dict[str, Any]
    calls: int
    seconds: float


def create_learning(model: Model, seconds: float, call: float, compiling: float) -> Learning:
    """The most that half of `seconds` allow, where a network call takes `call` an image and a program `compiling`.

    Raises ValueError where nothing can be learned for this model, and where the least takes longer.
    """
    student = model.config.student.method
    if student:
        raise ValueError(
            f"--train ld3: this checkpoint is a student ({student}), whose few calls are fixed; a schedule is learned "
            "for the network it was trained from. Name that one with --checkpoint, or leave --train out."
        )
    plain = changed(model.config, _PLAIN | {"ld3.start": "edm"})  # a searched grid is searched when it is needed
    try:
        task = ld3.create_task(dataclasses.replace(model, config=plain), plain)
    except ValueError as error:
        raise ValueError(f"--train ld3 learns no schedule for this model: {error}") from error
    own, each = model.config.ld3, calls_per_evaluation(model.config)
    calls = task.problem.student.calls(STEPS, task.problem.space.to_zero) * each
    teacher = {"method": own.teacher, "num_steps": own.teacher_steps, "grid": own.teacher_grid, "schedule": ""}
    drawn = create_sampler(model, changed(model.config, {f"sampling.{key}": teacher[key] for key in teacher})).nfe
    numbers, gits_images = 2 * (STEPS - 1), model.config.sampling.gits_images
    for train, valid, size, updates in EFFORTS:
        found_on = min(gits_images, train)  # trajectories, where the grid to begin from is searched for
        searched = TEACHER_STEPS * found_on * each if own.start in ("gits", "auto") else 0
        searched += len(ld3.AUTO) * train * calls if own.start == "auto" else 0
        an_update = calls * (size * (numbers + 2) + valid)  # the student, once more a number, and what came of it
        total = searched + (train + valid) * (0 if own.pairs else drawn) + updates * an_update + 3 * valid * calls
        takes = total * call + PROGRAMS * compiling
        if takes <= SHARE * seconds:
            changes = _PLAIN | {"ld3.num_train": train, "ld3.num_valid": valid, "ld3.batch_size": size}
            changes |= {"ld3.microbatch": math.gcd(size, own.microbatch), "training.num_steps": updates}
            changes |= {"sampling.gits_images": found_on}
            return Learning(changes, calls, takes)
    raise ValueError(
        f"--train ld3 takes about {format_seconds(takes)} at the least here, and may have {SHARE:.0%} of "
        f"--minutes={seconds / 60:g}; raise that to {math.ceil(takes / SHARE / 60)}, or leave --train out."
    )


def describe(learning: Learning, config: ConfigDict) -> str:
    changes, own = learning.changes, config.ld3
    return (
        f"the grid of {own.solver} at {learning.calls} calls is learned from {changes['ld3.num_train']}"
        f"+{changes['ld3.num_valid']} pairs of {own.teacher} in {own.teacher_steps} steps, "
        f"{changes['training.num_steps']} updates; about {format_seconds(learning.seconds)} of it"
    )


def schedule_path(workdir: Path) -> Path:
    return workdir / "ld3" / f"ld3_{STEPS}.json"


def learn(model: Model, learning: Learning, workdir: Path) -> float:
    """Writes `schedule_path(workdir)` and returns the seconds that took, over all sessions; a killed one goes on."""
    config = changed(model.config, learning.changes)
    model = dataclasses.replace(model, config=config)
    with stopwatch(workdir / "ld3") as before:
        start = time.time()
        train_ld3.learn(model, config, ld3.create_task(model, config), workdir)
        return before + time.time() - start


@contextlib.contextmanager
def stopwatch(folder: Path) -> Iterator[float]:
    """Gives the seconds that earlier sessions spent in `folder`; a killed one until the last file it wrote there."""
    path, before = folder / "seconds.json", 0.0
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        kept = json.loads(path.read_text())
        newest = max(file.stat().st_mtime for file in folder.rglob("*") if file.is_file())
        before = kept["seconds"] if kept["done"] else kept["seconds"] + max(0.0, newest - kept["started"])
    start = time.time()
    write_text(path, json.dumps({"seconds": before, "started": start, "done": False}))
    yield before
    write_text(path, json.dumps({"seconds": before + time.time() - start, "started": start, "done": True}))
