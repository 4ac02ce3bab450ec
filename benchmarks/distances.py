"""What the tables of solvers share: images drawn once and kept, and their distance from a reference of equal noise."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import run_lib
from builders.config import changed
from reports.atomic import write_atomically

_SHARE_A_PROGRAM = ("sampling.num_steps", "sampling.grid", "guidance.scale")


class Drawn(NamedTuple):
    """Images number 0, 1, ... of a method in the model's data range, [n, h, w, c], and what they cost."""

    images: np.ndarray
    nfe: int  # network calls an image
    gradient_calls: int  # an image
    seconds: float  # of all images, without compilation
    cpu_seconds: float  # of all cores, by this process alone: other work on the machine does not show


def edited(model: run_lib.Model, edits: Mapping[str, Any]) -> run_lib.Model:
    """The model with changed keys of its config, such as {"sampling.method": "ddim"}."""
    return dataclasses.replace(model, config=changed(model.config, edits))


def program(edits: Mapping[str, Any]) -> frozenset:
    """What edits must agree in to be run by one compiled program."""
    return frozenset((name, value) for name, value in edits.items() if name not in _SHARE_A_PROGRAM)


def draw(model: run_lib.Model, edits: Mapping[str, Any], count: int, kept: Path, compiled: set[frozenset]) -> Drawn:
    """`count` images under the edited config, of which those in the file `kept` are not drawn again.

    Images come block by block and are saved after each, so that a run that is stopped or repeated with a larger count
    goes on where it was. `compiled` remembers what this process has compiled: what is new to it runs a few steps before
    the clock does.
    """
    changed = edited(model, edits)
    drawn = Drawn(np.zeros((0, *model.shape), np.float32), 0, 0, 0.0, 0.0)
    if kept.exists():
        with np.load(kept) as file:
            drawn = Drawn(file["images"], *(file[name].item() for name in Drawn._fields[1:]))
    key = program(edits)
    if len(drawn.images) < count and key not in compiled:
        compiled.add(key)
        warm_up = edited(model, dict(edits) | {"sampling.num_steps": min(5, edits["sampling.num_steps"])})
        run_lib.sample(warm_up, None, range(16))
    while len(drawn.images) < count:
        done = len(drawn.images)
        wall, cpu = time.perf_counter(), time.process_time()
        found = run_lib.sample(changed, None, range(done, min(count, done + 16)))
        drawn = Drawn(
            np.concatenate([drawn.images, found.images]),
            found.nfe,
            found.gradient_calls,
            drawn.seconds + time.perf_counter() - wall,
            drawn.cpu_seconds + time.process_time() - cpu,
        )
        write_atomically(kept, lambda file: np.savez(file, **drawn._asdict()))  # noqa: B023
    share = count / len(drawn.images)
    return drawn._replace(
        images=drawn.images[:count], seconds=drawn.seconds * share, cpu_seconds=drawn.cpu_seconds * share
    )


def distance(images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Root mean square over the pixels of each image, its mean over images and half a 95 % interval of that mean.

    In units of the data range [0, 1]; an image that overflowed counts as infinitely far away.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        each = np.sqrt(np.square(images.astype(np.float64) - reference).mean((1, 2, 3)))
    each = np.where(np.isfinite(each), each, np.inf)
    half = 1.96 * each.std(ddof=1) / np.sqrt(len(each)) if np.isfinite(each).all() else float("inf")
    return {"distance": float(each.mean()), "interval": float(half), "largest": float(np.abs(images).max())}
