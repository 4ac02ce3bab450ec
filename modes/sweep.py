"""--mode=sweep: the product of options, each drawn and measured once; rows in W/results.jsonl and W/results.csv.

    python main.py --mode=sweep --config C --workdir W --num_samples 256 --sweep method=pc,pds --sweep speed_up=10,20

One process, so that programs compiled for one point serve the others. A sweep that was killed goes on where it stopped:
finished rows are not made again, and images of an unfinished point are kept.
"""

import ast
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from builders.config import apply_overrides, resolve_config
from builders.judge import check_size
from builders.latent import image_shape
from metrics.frechet import check_sample_size
from modes import evaluate, sample
from modes.request import SHORT_FLAGS, Request, open_model, workdir_of
from reports import rows

Point = dict[str, Any]  # config key -> value


def run(request: Request) -> None:
    """Draws and measures every point of the sweep (of this shard of it).

    A point whose settings are refused is a row of W/failures.jsonl, and the sweep goes on. Raises ValueError for a
    sweep that cannot be read or images too few for the covariance, before anything is drawn.
    """
    config, workdir = resolve_config(request.config), workdir_of(request)
    apply_overrides(config, request.overrides)
    points = shard_of(parse_sweep(request.sweep, config), request.shard)
    told = request.config is not None and not config.model.factory  # else the weights or the function know the size
    shape = image_shape(config) if told else open_model(request).image_shape
    standards = evaluate.open_standards(config, workdir, shape)
    if standards.statistics is not None and standards.judge is None:
        fit = standards.statistics.block_moments._replace(n=config.eval.num_samples)
        check_sample_size(fit, "images (--num_samples)")
    if standards.judge is not None:
        check_size(standards.judge, config.eval.num_samples)
    table = workdir / "results.jsonl"
    done = {row.get("point") for row in rows.read_rows(table)}
    for number, point in enumerate(points, 1):
        name = point_name(point)
        if name in done:
            continue
        logging.info("Point %d of %d: %s", number, len(points), name)
        if request.dry_run:
            continue
        folder = f"sweep/{name}"
        drawn = request._replace(overrides={**request.overrides, **point, "eval.eval_folder": folder})
        try:
            sample.run(drawn)
        except ValueError as error:
            logging.warning("%s is left out: %s", name, error)
            _append_failure(workdir / "failures.jsonl", name, str(error))
            continue
        row = evaluate.measure(workdir / folder, *standards)
        row |= {"draw": draw_command(sys.argv, point)}
        rows.append_row(table, {"point": name} | {key.rpartition(".")[2]: value for key, value in point.items()} | row)
        rows.write_csv(workdir / "results.csv", rows.read_rows(table))
    if request.dry_run:
        return
    columns = {"point": "point", "calls": "calls", "n": "n", "block_frechet": "block Frechet"}
    columns |= {"radial_power_error": "spectrum error", "seconds": "seconds"}
    print(rows.markdown_table([row for row in rows.read_rows(table) if "point" in row], columns))


def parse_sweep(options: Sequence[str], config: ConfigDict) -> list[Point]:
    """ "speed_up=1,10" and "method=pds,unipc" -> the four points. Keys are short flags or keys of the config."""
    if not options:
        raise ValueError("--sweep is missing: name options and their values, such as --sweep steps=5,10.")
    axes: list[list[tuple[str, Any]]] = []
    known = dict(_leaves(config.to_dict()))
    for option in options:
        name, equals, values = option.partition("=")
        key = SHORT_FLAGS.get(name, name)
        if not equals or not values or key not in known:
            raise ValueError(
                f"--sweep {option!r} is not NAME=VALUE,VALUE with a flag ({', '.join(sorted(SHORT_FLAGS))}) or a key "
                "of the config, such as sampling.snr=0.1,0.16."
            )
        axes.append([(key, _value(text, known[key], option)) for text in values.split(",")])
    return [dict(point) for point in itertools.product(*axes)]


def shard_of(points: list[Point], shard: str) -> list[Point]:
    """ "k/n" -> every n-th point from the k-th (k = 0..n-1), for job arrays; "" -> all."""
    if not shard:
        return points
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"--shard={shard!r} is not k/n with 0 <= k < n.")
    return points[int(number) :: int(count)]


def point_name(point: Point) -> str:
    """ "method=pds,speed_up=10": a name for rows and folders."""
    return ",".join(f"{key.rpartition('.')[2]}={str(value).replace('/', '_')}" for key, value in point.items())


def draw_command(command: Sequence[str], point: Point) -> str:
    """The command line that draws the images of a point, from that of the sweep or comparison."""
    dropped = ("mode", "sweep", "shard", "minutes", "data", "num_samples")
    kept, arguments = [], iter(command[1:])
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name not in dropped:
            kept.append(argument)
        elif not equals:
            next(arguments, None)  # its value
    short = {key: name for name, key in SHORT_FLAGS.items()}
    added = [f"--{short.get(key, f'config.{key}')}={value}" for key, value in point.items()]
    return shlex.join(["python", "main.py", *kept, *added])


def _value(text: str, default: Any, option: str) -> Any:
    """`text` in the type of the key it is for."""
    try:
        value: Any = text if isinstance(default, str) else ast.literal_eval(text)
        return type(default)(value) if isinstance(default, float) and not isinstance(value, str) else value
    except (ValueError, SyntaxError):
        raise ValueError(f"--sweep {option!r}: {text!r} is no {type(default).__name__}.") from None


def _leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _append_failure(path: Path, name: str, error: str) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"point": name, "error": error}) + "\n")
