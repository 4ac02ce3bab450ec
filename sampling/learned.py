"""A learned schedule is a file: which solver, where it steps, what the network is told, which coefficients it adds.

    {"format": "learned-schedule", "version": 1, "solver": "dpmpp", "order": 0, "variant": "", "steps": 5,
     "s": [...], "s_model": [...], "coefficients": {...}, "sde": {...}, "checkpoint": "sha256",
     "teacher": {...}, "guidance": {...}, "training": {...}}

`s` and `s_model` are N + 1 decreasing noise scales sigma/alpha, the last s perhaps 0. `coefficients` may hold `predict`
[N, 4], added to the weights of the solver's history, and `on_states` with `on_outputs` [N, N], the corrections of
`sampling.general_solver`. The rest says for what it was learned; it is compared before anything is drawn.

Lists that others publish are read too: a JSON list of noise scales (Align Your Steps, GITS), {"t_steps": [...]} of
those, or LD3 steps by their probabilities, {"probabilities": [...], "timesteps_sigma": [...]}. They name no solver and
no process, so `Schedule.solver` is "" and whoever uses them says which.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from array_types import Table
from sampling import general_solver, multistep, single_step, time_grids
from sampling.base import Sampler, TimeGrid
from sampling.denoising import Denoiser
from sde_lib import GaussianSDE

FORMAT = "learned-schedule"
VERSION = 1
LARGEST = 1 << 20  # bytes of a file that is still taken for a schedule
MOST_STEPS = 1000
_COEFFICIENTS = ("predict", "on_states", "on_outputs")


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A learned sampler, as in the file.

    Attributes:
      solver: a key of `multistep.SOLVERS` or `single_step.STEPS`; "" for a list that goes with any.
      order, variant: of the solver; 0 and "" are its own.
      grid: N + 1 noise scales, and those told to the network.
      coefficients: `predict`, `on_states`, `on_outputs`, those that were learned.
      sde: the process as `describe_sde` says it; empty for any.
      checkpoint: hash of the weights it was learned with.
      teacher, guidance, training: facts for the reader; the guidance is compared too.
    """

    solver: str
    grid: TimeGrid
    order: float = 0
    variant: str = ""
    coefficients: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sde: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkpoint: str = ""
    teacher: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    guidance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def method(self) -> str:
        """On the command line: "gs" with corrections from all it has seen, "s4s" with other weights, else "ld3"."""
        return "gs" if "on_states" in self.coefficients else "s4s" if "predict" in self.coefficients else "ld3"

    def settings(self) -> dict[str, Any]:
        """Of the solver."""
        return {key: value for key, value in (("order", self.order), ("variant", self.variant)) if value}


def describe_sde(sde: GaussianSDE) -> dict[str, Any]:
    """A process in JSON: the name of its class and its settings."""
    settings: dict[str, Any] = {}
    if dataclasses.is_dataclass(sde) and not isinstance(sde, type):
        settings = dataclasses.asdict(sde)
    plain = {key: value for key, value in settings.items() if isinstance(value, int | float | str)}
    return {"name": type(sde).__name__, **plain}


# --- the sampler -----------------------------------------------------------------------------------------------------


def input_scale(grid: TimeGrid, sde: GaussianSDE) -> Table | None:
    """alpha(s)/alpha(s_model) at s[:-1], as `multistep.table` asks for; None where nothing was decoupled."""
    if np.array_equal(grid.s, grid.s_model):
        return None
    alpha, told = (np.asarray(sde.alpha(np.asarray(sde.time(s[:-1])))) for s in grid)
    return alpha / told


def rows(schedule: Schedule, sde: GaussianSDE) -> Any:
    """The table of a schedule, float64 NumPy: rows of the solver, with its coefficients added."""
    if schedule.solver in single_step.STEPS:
        return single_step.rows(schedule.grid)
    scale = input_scale(schedule.grid, sde)
    table = multistep.table(schedule.solver, schedule.grid, scale, **schedule.settings())
    if "predict" in schedule.coefficients:
        table = table._replace(predict=table.predict + schedule.coefficients["predict"])
    if "on_states" not in schedule.coefficients:
        return table
    return general_solver.Rows(table, schedule.coefficients["on_states"], schedule.coefficients["on_outputs"])


def create(
    schedule: Schedule,
    denoiser: Denoiser,
    sde: GaussianSDE,
    shape: tuple[int, int, int],
    prior_scale: float,
    record: bool = False,
) -> Sampler:
    """The sampler of a schedule that names its solver, for images of `shape` (h, w, c); see `denoising.create`."""
    table = rows(schedule, sde)
    if isinstance(table, single_step.Rows):
        return single_step.create(schedule.solver, denoiser, schedule.grid, shape, prior_scale, record)
    if isinstance(table, general_solver.Rows):
        return general_solver.create(table, denoiser, shape, prior_scale, record)
    return multistep.create(table, denoiser, shape, prior_scale, record)


def check(schedule: Schedule, path: str, *, solver: str, order: float, num_steps: int, sde: GaussianSDE) -> None:
    """Raises ValueError, naming both sides, for a schedule that was learned for something else.

    solver, order, num_steps: what was asked for; "" or 0 takes what the file says.
    """
    steps = schedule.grid.num_steps
    if num_steps and num_steps != steps:
        raise ValueError(
            f"{path} was learned for {steps} steps, --steps asks for {num_steps}; leave --steps out, or learn another."
        )
    if solver and schedule.solver and _same_name(solver) != _same_name(schedule.solver):
        raise ValueError(
            f"{path} was learned for {schedule.solver}, --method asks for {solver}: a grid suits its own solver only. "
            "Use --method=ld3, which takes the one of the file."
        )
    if order and schedule.solver and order != schedule.order:
        raise ValueError(
            f"{path} was learned for order {schedule.order or 'of the default'}, config.sampling.order asks for "
            f"{order}; leave it out."
        )
    own = describe_sde(sde)
    if schedule.sde and _rounded(schedule.sde) != _rounded(own):
        raise ValueError(
            f"{path} was learned under {_sde_text(schedule.sde)}, the model has {_sde_text(own)}; learn one for it "
            "(--mode=train --config ...:ld3)."
        )


def _same_name(solver: str) -> str:
    return {"uni_pc": "unipc", "dpm_solver++": "dpmpp"}.get(solver, solver)


def _rounded(sde: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.6g}") if isinstance(value, int | float) else value for key, value in sde.items()}


def _sde_text(sde: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in sde.items() if key != "name")
    return f"{sde.get('name')}({settings})"


# --- the file --------------------------------------------------------------------------------------------------------


def to_json(schedule: Schedule) -> str:
    """The text of the file, deterministic; numbers to the last bit."""
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "solver": schedule.solver,
        "order": schedule.order,
        "variant": schedule.variant,
        "steps": schedule.grid.num_steps,
        "s": schedule.grid.s.tolist(),
        "s_model": schedule.grid.s_model.tolist(),
        "coefficients": {key: np.asarray(value).tolist() for key, value in sorted(schedule.coefficients.items())},
        "sde": dict(schedule.sde),
        "checkpoint": schedule.checkpoint,
        "teacher": dict(schedule.teacher),
        "guidance": dict(schedule.guidance),
        "training": dict(schedule.training),
    }
    lines = [f' "{key}": {json.dumps(value, allow_nan=False)}' for key, value in fields.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: str) -> Schedule:
    """The schedule in a file; "file.json#name" takes one of several that a published file holds by name.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """
    file, _, name = str(path).partition("#")
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"config.sampling.schedule={path}: there is no such file; learn one with --mode=train --config ...:ld3, or "
            "name another."
        )
    if Path(file).stat().st_size > LARGEST:
        raise ValueError(f"{file} is larger than a learned schedule can be ({LARGEST} bytes).")
    try:
        content = json.loads(Path(file).read_bytes().decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file of a learned schedule: {error}") from error
    if name:
        if not isinstance(content, dict) or name not in content:
            names = sorted(content) if isinstance(content, dict) else []
            raise ValueError(f"{file} holds no {name!r}; it has {names[:20]}.")
        content = content[name]
    return parse(content, str(path))


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def parse(content: Any, source: str) -> Schedule:
    """A schedule from decoded JSON, of this toolkit's format or a published list. Raises ValueError naming `source`."""
    if isinstance(content, list):
        return Schedule("", _grid(content, None, source))
    if not isinstance(content, dict):
        raise ValueError(f"{source} is no learned schedule: it holds {type(content).__name__}.")
    if "probabilities" in content:
        return Schedule("", _from_probabilities(content, source))
    if "format" not in content and "t_steps" in content:
        return Schedule("", _grid(content["t_steps"], None, source))
    if content.get("format") != FORMAT:
        nested = sorted(key for key, value in content.items() if isinstance(value, dict | list))[:20]
        hint = f" It holds {nested}: name one as {source}#{nested[0]}." if nested else ""
        raise ValueError(f"{source} is no learned schedule: its format is {content.get('format')!r}.{hint}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{source} has version {content.get('version')!r} of the format, this program reads {VERSION}."
        )
    return _from_fields(content, source)


def _from_fields(content: dict[str, Any], source: str) -> Schedule:
    for key, kind in (("solver", str), ("variant", str), ("checkpoint", str), ("order", int | float), ("steps", int)):
        if not isinstance(content.get(key), kind) or isinstance(content.get(key), bool):
            raise ValueError(f"{source}: {key} is {content.get(key)!r}.")
    for key in ("coefficients", "sde", "teacher", "guidance", "training"):
        if not isinstance(content.get(key), dict):
            raise ValueError(f"{source}: {key} is {content.get(key)!r}, not an object.")
    if content["solver"] not in (*multistep.SOLVERS, *single_step.STEPS):
        raise ValueError(
            f"{source}: solver {content['solver']!r} is unknown; this program has "
            f"{sorted({*multistep.SOLVERS, *single_step.STEPS})}."
        )
    grid = _grid(content.get("s"), content.get("s_model"), source)
    if grid.num_steps != content["steps"]:
        raise ValueError(f"{source} says {content['steps']} steps and has {grid.num_steps}.")
    found = Schedule(
        content["solver"],
        grid,
        content["order"],
        content["variant"],
        _coefficients(content["coefficients"], grid.num_steps, source),
        content["sde"],
        content["checkpoint"],
        content["teacher"],
        content["guidance"],
        content["training"],
    )
    if found.coefficients and found.solver in single_step.STEPS:
        raise ValueError(f"{source}: {found.solver} takes no coefficients.")
    if found.solver in multistep.SOLVERS:
        try:
            multistep.table(found.solver, grid, **found.settings())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {error}") from error
    return found


def _grid(s: Any, s_model: Any, source: str) -> TimeGrid:
    return time_grids.explicit(
        _numbers(s, (None,), "s", source),
        None if s_model is None else _numbers(s_model, (None,), "s_model", source),
        source,
    )


def _coefficients(content: dict[str, Any], n: int, source: str) -> dict[str, np.ndarray]:
    shapes = {"predict": (n, multistep.HISTORY), "on_states": (n, n), "on_outputs": (n, n)}
    unknown = sorted(set(content) - set(shapes))
    if unknown:
        raise ValueError(f"{source}: coefficients {unknown} are unknown; there are {sorted(shapes)}.")
    if ("on_states" in content) != ("on_outputs" in content):
        raise ValueError(f"{source}: on_states and on_outputs come together.")
    return {key: _numbers(value, shapes[key], key, source) for key, value in content.items()}


def _numbers(values: Any, shape: tuple[int | None, ...], name: str, source: str) -> np.ndarray:
    """A finite float64 array of this shape (None is any length up to `MOST_STEPS` + 1)."""
    try:
        found = np.array(values, dtype=object)
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in found.flat):
            raise ValueError("not all of them are numbers")
        found = found.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{source}: {name} is no array of numbers ({error}).") from error
    wanted = tuple(found.shape[i] if n is None and i < found.ndim else n for i, n in enumerate(shape))
    if found.shape != wanted or len(found) > MOST_STEPS + 1:
        raise ValueError(f"{source}: {name} has shape {found.shape}, wanted is {shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"{source}: {name} has numbers that are not finite.")
    return found


def _from_probabilities(content: dict[str, Any], source: str) -> TimeGrid:
    """LD3 steps as published: p are shares of the way in log s, s are the noise scales they make.

    With c the cumulative sum of p, log s_i = log s_max + (c_i - c_0)/(c_last - c_0) log(s_min/s_max). Sets with a free
    last step have one p more and leave the last point out. Raises ValueError where the two lists disagree by more than
    1e-4 in log s.
    """
    p = _numbers(content["probabilities"], (None,), "probabilities", source)
    s = _numbers(content.get("timesteps_sigma"), (None,), "timesteps_sigma", source)
    if len(p) - len(s) not in (0, 1) or not (s > 0).all() or not (p >= 0).all():
        raise ValueError(
            f"{source}: {len(p)} probabilities for {len(s)} noise scales; there are as many, or one more where the "
            "last step is free, and both are positive."
        )
    grid = time_grids.explicit(s, None, source)
    s_min = s[-1] if len(p) == len(s) else PUBLISHED_S_MIN
    ours = grid_of_probabilities(p, float(s[0]), float(s_min))[: len(s)]
    worst = float(np.abs(np.log(ours / s)).max())
    if worst > 1e-4:
        raise ValueError(
            f"{source}: its probabilities make {np.round(ours, 4).tolist()}, its noise scales are {s.tolist()}."
        )
    return grid


PUBLISHED_S_MIN = 0.002  # where the published CIFAR-10 grids end


def grid_of_probabilities(p: Table, s_max: float, s_min: float) -> Table:
    """The noise scales that shares p of the way in log s mean; the first p only shifts the sum and cancels."""
    c = np.cumsum(p)
    return np.exp(np.log(s_max) + (c - c[0]) / (c[-1] - c[0]) * np.log(s_min / s_max))


def from_times(times: Any, sde: GaussianSDE, source: str, time_is_sigma: bool = False) -> TimeGrid:
    """`best_t_steps` of the published program, 2 (N + 1) SDE times: where it steps, then what the network is told.

    time_is_sigma: for its EDM models, whose time is the noise scale.
    """
    values = _numbers(times, (None,), "best_t_steps", source)
    if len(values) % 2 or len(values) < 4:
        raise ValueError(f"{source}: {len(values)} times are no two lists of equal length.")
    halves = np.split(values, 2)
    s, s_model = halves if time_is_sigma else (np.asarray(sde.noise_scale(half), np.float64) for half in halves)
    return time_grids.explicit(s, s_model, source)
