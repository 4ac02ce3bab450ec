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

from builders.config import apply_overrides, changed, resolve_config
from builders.judge import check_size
from builders.latent import image_shape
from metrics.frechet import check_sample_size
from modes import evaluate, repeat, sample
from modes.request import SHORT_FLAGS, Request, open_model, parse_seeds, workdir_of
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
    done = {row["point"]: row for row in rows.read_rows(table) if "point" in row}
    check_done([(point, done[name]) for point in points if (name := point_name(point)) in done], request, config)
    for number, point in enumerate(points, 1):
        name = point_name(point)
        if name in done:
            continue
        logging.info("Point %d of %d: %s", number, len(points), name)
        if request.dry_run:
            continue
        folder = f"sweep/{name}"
        plain = {"eval.compare": ""}  # a picture of another method beside each point says nothing new
        drawn = request._replace(overrides=plain | {**request.overrides, **point, "eval.eval_folder": folder})
        try:
            sample.run(drawn)
            row = evaluate.measure(workdir / folder, *standards)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk is full, say: no fault of the point
                raise
            append_failure(workdir, name, error)
            continue
        row |= {"draw": draw_command(sys.argv, point)}
        rows.append_row(table, {"point": name} | {key.rpartition(".")[2]: value for key, value in point.items()} | row)
        rows.write_csv(workdir / "results.csv", rows.read_rows(table))
    if request.dry_run:
        return
    columns = {"point": "point", "calls": "calls", "n": "n", "block_frechet": "block Frechet"}
    columns |= {"radial_power_error": "spectrum error", "steady_seconds": "seconds"}
    columns |= {"compile_seconds": "compile seconds", "peak_memory": "bytes a device"}
    print(rows.markdown_table([row for row in rows.read_rows(table) if "point" in row], columns))


def check_done(done: Sequence[tuple[Point, rows.Row]], request: Request, config: ConfigDict) -> None:
    """Raises ValueError where a row of an earlier sweep is of other images than this one asks for under its name."""
    wanted = len(parse_seeds(request.seeds, config.eval.num_samples))
    told = [(point, row) for point, row in done if row.get("config")]
    model = open_model(request) if told else None
    for _, row in done:
        if row["n"] != wanted:
            raise _mixed(row, "n", row["n"], wanted)
    for point, row in told:
        assert model is not None
        if row["checkpoint"] != model.weights_hash[:12]:
            raise _mixed(row, "checkpoint", row["checkpoint"], model.weights_hash[:12])
        asked = changed(model.config, point)
        there, here = (dict(leaves(json.loads(text))) for text in (row["config"], repeat.settings_text(asked)))
        if not asked.sampling.microbatch:  # chosen by the run
            there["sampling.microbatch"] = here["sampling.microbatch"] = None
        for key in sorted({*there, *here}):
            if there.get(key) != here.get(key):
                raise _mixed(row, f"config.{key}", there.get(key, "the default"), here.get(key, "the default"))


def _mixed(row: rows.Row, key: str, there: object, here: object) -> ValueError:
    return ValueError(
        f"The row {row['point']!r} in this --workdir was made with {key} {there}, this sweep asks for {here}: a table "
        "holds one kind of run. Use another --workdir, or repeat the sweep as it was."
    )


def parse_sweep(options: Sequence[str], config: ConfigDict) -> list[Point]:
    """ "speed_up=1,10" and "method=pds,unipc" -> the four points. Keys are short flags or keys of the config."""
    if not options:
        raise ValueError("--sweep is missing: name options and their values, such as --sweep steps=5,10.")
    axes: list[list[tuple[str, Any]]] = []
    known = dict(leaves(config.to_dict()))
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


def draw_command(command: Sequence[str], point: Point, mode: str = "") -> str:
    """The command line that draws the images of a point, or does `mode`, from that of the sweep or comparison."""
    dropped = ("mode", "sweep", "shard", "minutes", "train", "data", "num_samples")
    kept, arguments = [], iter(command[1:])
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name not in dropped:
            kept.append(argument)
        elif not equals:
            next(arguments, None)  # its value
    short = {key: name for name, key in SHORT_FLAGS.items()}
    added = [f"--{short.get(key, f'config.{key}')}={value}" for key, value in point.items()]
    return shlex.join(["python", "main.py", *([f"--mode={mode}"] if mode else []), *kept, *added])


def _value(text: str, default: Any, option: str) -> Any:
    """`text` in the type of the key it is for."""
    try:
        value: Any = text if isinstance(default, str) else ast.literal_eval(text)
        return type(default)(value) if isinstance(default, float) and not isinstance(value, str) else value
    except (ValueError, SyntaxError):
        raise ValueError(f"--sweep {option!r}: {text!r} is no {type(default).__name__}.") from None


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("sampling.method", "pc"), ... of a config as nested dictionaries."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def append_failure(workdir: Path, name: str, error: Exception) -> None:
    """A row of W/failures.jsonl, once for each reason."""
    logging.warning("%s is left out: %s", name, error)
    path, row = workdir / "failures.jsonl", {"point": name, "error": str(error)}
    if row not in rows.read_rows(path):
        workdir.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
