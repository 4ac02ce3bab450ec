"""--mode=compare: which method draws best from this checkpoint, within a time that is given.

    python main.py --mode=compare --checkpoint FILE --workdir W [--data images/] [--minutes 10] [--train ld3]

Times one network call, says which methods it will try, on how many images and how long that takes, draws and measures
them from equal noise, and writes the report of `modes.report`. It trains nothing, but for a schedule where --train ld3
asks for one (`modes/compare_learning.py`). A comparison that was killed goes on with the same plan: W/compare.json.
"""

import copy
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from builders import solvers
from builders.config import changed
from builders.draw import group_size
from builders.draw import sample as draw
from builders.model import Model
from builders.samplers import create_sampler
from metrics.intervals import normal_interval
from metrics.paired import rmse
from metrics.reference import Reference, check_shape, save_reference
from modes import compare_learning, evaluate, report, sample, sweep
from modes.compare_learning import Learning
from modes.request import Request, open_model, workdir_of
from reports import rows
from reports.atomic import write_text
from reports.outputs import read_run
from reports.progress import format_seconds

# What is tried, the most telling first: method and steps (levels for pc and pds). Time decides how far down it goes.
CANDIDATES = (
    *(("unipc", 10), ("heun", 10), ("ddim", 10), ("unipc", 5), ("pds", 25), ("gs", 5), ("ld3", 5), ("ddim", 20)),
    *(("pc", 25), ("unipc", 20), ("dpmpp", 10), ("gs", 10), ("ld3", 10), ("heun", 5), ("ddim", 5), ("dpmpp", 5)),
    *(("pds", 50), ("pc", 50), ("ipndm", 10), ("s4s", 5), ("edm", 20), ("ipndm", 5), ("dpmpp", 20), ("heun", 25)),
    *(("pds", 100), ("pc", 100), ("deis", 10), ("sa", 20), ("edm", 50), ("ddim", 50)),
)
CORE = 8  # points without which a comparison says little
SIZES = (1000, 500, 256, 64, 16)  # images a row
REFERENCE = {"sampling.method": "heun", "sampling.num_steps": 50}  # a run of many calls, from the same noise
PAIRED = 64  # images of it
COMPILING = 8.0  # seconds a method, about
STOCHASTIC = ("pc", "pds", *solvers.STOCHASTIC)  # equal noise says nothing about them
FORMAT = "comparison"


class Plan(NamedTuple):
    """What is drawn: changes to the config by the names of points, and images a row."""

    points: dict[str, dict[str, Any]]
    n: int
    seconds: float  # that it will take, about
    learning: Learning | None = None  # of the schedule of the last point, with --train ld3


def run(request: Request) -> None:
    """Compares methods and writes W/report/index.html; rows in W/results.jsonl, images in W/compare."""
    model, workdir = open_model(request), workdir_of(request)
    config = model.config
    photographs = evaluate.open_photographs(config, model.image_shape)
    statistics = None
    if photographs is not None or config.eval.reference:
        statistics = evaluate.open_statistics(config, workdir, photographs)
    if statistics is not None:
        check_shape(model.image_shape, statistics)
    plan = _kept(workdir / "compare.json", model) or _planned(model, statistics, request, workdir)
    if request.train and plan.learning is None:
        raise ValueError(
            f"{workdir / 'compare.json'}: the comparison here was begun without --train={request.train}; use another "
            "--workdir, or leave --train out."
        )
    logging.info("%s", describe(model, plan, statistics))
    if request.dry_run:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    _keep(workdir / "compare.json", model, plan)
    if statistics is not None:
        save_reference(workdir / "reference.npz", statistics)
    many = _draw(request, "reference", REFERENCE, min(PAIRED, plan.n))
    done = {row.get("point") for row in rows.read_rows(workdir / "results.jsonl")}
    for number, (name, point) in enumerate(plan.points.items(), 1):
        if name in done:
            continue
        logging.info("%d of %d: %s", number, len(plan.points), name)
        try:
            learned = _learned(model, plan.learning, workdir) if name == compare_learning.POINT else {}
            folder = _draw(request, name, point, plan.n)
            row = evaluate.measure(folder, statistics if plan.n >= needed(statistics) else None, photographs)
        except (ValueError, FloatingPointError) as error:  # it diverged, say; the others may not
            sweep.append_failure(workdir, name, error)
            continue
        row |= learned | {"point": name, "draw": sweep.draw_command(sys.argv, point)}
        if point["sampling.method"] not in STOCHASTIC:
            row |= distance(rmse(read_run(folder)[0][:PAIRED], read_run(many)[0]))
        rows.append_row(workdir / "results.jsonl", row)
        rows.write_csv(workdir / "results.csv", rows.read_rows(workdir / "results.jsonl"))
    logging.info("Open %s in a browser.", report.write_report(workdir, config))


def _planned(model: Model, statistics: Reference | None, request: Request, workdir: Path) -> Plan:
    """`create_plan`, and what is to be learned as its last point."""
    seconds, per_call = 60 * request.minutes, call_seconds(model)
    if not request.train:
        return create_plan(model, statistics, seconds, per_call)
    learning = compare_learning.create_learning(model, seconds, per_call, COMPILING)
    plan = create_plan(model, statistics, seconds - learning.seconds, per_call)
    path = str(compare_learning.schedule_path(workdir))
    point = {"sampling.method": "ld3", "sampling.num_steps": compare_learning.STEPS, "sampling.schedule": path}
    spent = plan.seconds + learning.seconds + learning.calls * plan.n * per_call + COMPILING
    return Plan({**plan.points, compare_learning.POINT: point}, plan.n, spent, learning)


def _learned(model: Model, learning: Learning | None, workdir: Path) -> dict[str, Any]:
    """Columns of the row of a schedule that is learned here: how long that took, and the command that does it."""
    assert learning is not None
    seconds = compare_learning.learn(model, learning, workdir)
    default = dict(sweep.leaves(model.config.to_dict()))
    told = {key: value for key, value in learning.changes.items() if default[key] != value}
    return {"learning_seconds": seconds, "learn": sweep.draw_command(sys.argv, told, "train")}


def needed(statistics: Reference | None) -> int:
    """Images without which a covariance cannot be told: one more than there are features."""
    return len(statistics.block_moments.mean) + 1 if statistics is not None else 0


def create_plan(model: Model, statistics: Reference | None, seconds: float, per_call: float) -> Plan:
    """As many images a row as leave time for the core of CANDIDATES, then as many of them as there is time for.

    Raises ValueError, with how long it would take, if even the fewest images do.
    """
    calls = {name: (point, nfe) for name, point, nfe in _possible(model)}
    reference_calls = _calls(model, REFERENCE)
    few = needed(statistics)
    enough = sorted({*(size for size in SIZES if size >= few), few or SIZES[-1]}, reverse=True)
    # Fewer than the covariance needs are drawn only where there is no time for more; spectra and pictures remain.
    for n in [*enough, *(size for size in SIZES if size < few)]:
        spent, points = reference_calls * min(PAIRED, n) * per_call + COMPILING, {}
        for name, (point, nfe) in calls.items():
            takes = nfe * n * per_call + COMPILING
            if spent + takes <= seconds:
                spent, points[name] = spent + takes, point
        if len(points) >= min(CORE, len(calls)):
            return Plan(points, n, spent)
    raise ValueError(
        f"--minutes={seconds / 60:g} is too short: a network call takes {per_call:.3g} s an image here, so that "
        f"{CORE} methods on {SIZES[-1]} images take about {format_seconds(2 * spent + CORE * COMPILING)}; raise it."
    )


def call_seconds(model: Model) -> float:
    """Of one network call, an image: two steps of DDIM on as many images as go at once, after one for compilation."""
    _, size = group_size(model.config, SIZES[-1])
    few = {"method": "ddim", "num_steps": 2, "schedule": ""}
    draw(_plain(model), few, range(size))
    start = time.perf_counter()
    calls = draw(_plain(model), few, range(size)).nfe
    return (time.perf_counter() - start) / (calls * size)


def _plain(model: Model) -> Model:
    return dataclasses.replace(model, config=copy.deepcopy(model.config))


def _possible(model: Model) -> list[tuple[str, dict[str, Any], int]]:
    """(name, point, calls) of the candidates that this model and its config have."""
    found = []
    for method, steps in CANDIDATES:
        point: dict[str, Any] = {"sampling.method": method, "sampling.num_steps": steps}
        if method == "pds" and not (model.config.sampling.freq_mask_path or model.config.sampling.space_mask_path):
            point["sampling.freq_mask_path"] = "natural"
        if method == "dpmpp":
            point["sampling.order"] = 2
        try:
            found.append((sweep.point_name(point), point, _calls(model, point)))
        except (ValueError, FileNotFoundError) as error:
            logging.debug("%s is left out: %s", point, error)  # a learned schedule that is not there, say
    return found


def _calls(model: Model, point: dict[str, Any]) -> int:
    """Network calls an image of a point."""
    return create_sampler(model, changed(model.config, point)).nfe


def describe(model: Model, plan: Plan, statistics: Reference | None) -> str:
    against = f"judged against {statistics.name}" if statistics is not None else "judged by a long run from equal noise"
    few = needed(statistics)
    if plan.n < few:
        against += f", by spectra and distances only: the Frechet distance needs {few} images a row"
    learning = f" For the last, {compare_learning.describe(plan.learning, model.config)}." if plan.learning else ""
    return (
        f"{len(plan.points)} ways to sample {model.config.model.name} ({model.num_params / 1e6:.2f} M parameters, "
        f"{model.image_shape[0]} px), {plan.n} images each, {against}; about {format_seconds(plan.seconds)} on "
        f"{rows.machine()}: {'; '.join(plan.points)}.{learning}"
    )


def distance(each: np.ndarray) -> dict[str, float]:
    """Columns of a row: the mean distance of images [n] to the reference run, with a 95 % interval over them."""
    error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0
    found = normal_interval(float(each.mean()), error)
    return {"distance": found.value, "distance_low": max(found.low, 0.0), "distance_high": found.high}


def _draw(request: Request, name: str, point: dict[str, Any], n: int) -> Path:
    """The folder of a finished run of the point."""
    folder = f"compare/{name}"
    overrides = {**request.overrides, **point, "eval.eval_folder": folder, "eval.num_samples": n, "eval.compare": ""}
    sample.run(request._replace(overrides=overrides))
    return workdir_of(request) / folder


def _keep(path: Path, model: Model, plan: Plan) -> None:
    content = {"format": FORMAT, "version": 1, "weights": model.weights_hash, "jax": jax.__version__}
    content |= plan._asdict() | {"learning": plan.learning._asdict() if plan.learning else None}
    write_text(path, json.dumps(content, indent=1))


def _kept(path: Path, model: Model) -> Plan | None:
    """The plan of a comparison that was begun here. Raises ValueError if it was of another model."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        learning = Learning(**content["learning"]) if content.get("learning") else None
        plan = Plan(content["points"], content["n"], content["seconds"], learning)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no plan of a comparison ({error}); delete it, or use another --workdir."
        ) from error
    if content["weights"] != model.weights_hash:
        raise ValueError(
            f"{path}: the comparison here is of weights {content['weights'][:12]}, these are "
            f"{model.weights_hash[:12]}; use another --workdir."
        )
    return plan
