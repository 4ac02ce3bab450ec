"""Guided sampling by operator splitting: the network's flow D and the conditional flow C take turns.

In y = x/alpha and s = sigma/alpha the guided flow dy/ds = eps(y, s) - w s grad log p(condition | y) is a sum.
High-order extrapolation of the sum blows up where guidance is strong and steps are few; splitting keeps the stiff C
out of the extrapolation (Wizadwongsa and Suwajanakorn 2023, "Accelerating guided diffusion sampling with splitting
numerical methods"). One step from a to b < a, m their mean:

    Lie-Trotter (LTSP)   C(a -> b), D(a -> b)                     1 kick
    Strang (STSP)        C(a -> m), D(a -> b), C(m -> b)          2 kicks

D is any solver of the engine (`multistep`, `single_step`), C any of `conditional`. A splitting is nothing but an order
of rows: each row of the table is a network step, a kick or a projection, and one scan runs them all.

Two versions of everything:

* corrected (default): weight and gradient of a kick at one noise level; the last step, to s = 0, takes both half kicks
  before the network, so that no guidance touches the finished image; projections see the noise level they act at.
* official: what the published program computes, for comparison with published figures. The second half kick takes the
  weight of the middle but the gradient of the end, and is applied to the finished image too; PLMS starts with an extra
  network call and ends with an unmixed step.

Order: Strang with a multistep D is of order 1, like Lie-Trotter, because the points of D's history lie on flows that
kicks separate; Strang with a one-step D (`heun`, `dpmpp_2s`) and a C of order 2 is of order 2.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Keys, Table
from sampling import conditional, denoising, multistep, published_splitting, single_step
from sampling.base import Sampler, Step, TimeGrid
from sampling.conditional import Curvature, Kicks
from sampling.denoising import Denoiser
from sampling.guidance import UNIT, Guided, Schedule, cost, limit

SPLITTINGS = ("none", "lie_trotter", "strang")
COMPATS = ("corrected", "official")
_PUBLISHED = {"ltsp": "lie_trotter", "stsp": "strang"}
_ONE_ORDER = {*single_step.STEPS, "ddim", "euler"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is split how.

    Attributes:
      splitting: "none" (the guided denoiser, D and C summed), "lie_trotter" or "strang".
      solver: of D, a key of `multistep.SOLVERS` or `single_step.STEPS`.
      order: of D if it has several; 0 is its own default.
      conditional: of C, a key of `conditional.SOLVERS`.
      substeps: equal parts of each kick; 0 chooses them from the guidance's curvature.
      compat: "corrected" or "official".
    """

    splitting: str = "strang"
    solver: str = "ipndm_v"
    order: int = 0
    conditional: str = "euler"
    substeps: int = 1
    compat: str = "corrected"

    def __post_init__(self):
        for name, choices in (
            ("splitting", SPLITTINGS),
            ("solver", sorted({*multistep.SOLVERS, *single_step.STEPS})),
            ("conditional", sorted(conditional.SOLVERS)),
            ("compat", COMPATS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"config.guidance.{name}={getattr(self, name)!r} is unknown; choose one of {list(choices)}."
                )
        if self.substeps < 0:
            raise ValueError(f"config.guidance.substeps={self.substeps}: 1 or more, or 0 for automatic.")
        if self.compat == "official" and (self.conditional, self.substeps) != ("euler", 1):
            raise ValueError(
                "The published program has Euler kicks only; leave config.guidance.conditional at 'euler' and substeps "
                "at 1 with config.guidance.compat='official', or choose 'corrected'."
            )


def stable_order(order: int, num_steps: int) -> int:
    """The order of D that stays stable under strong guidance: at most 2 below 15 steps, 3 below 20."""
    return min(order, 2 if num_steps < 15 else 3 if num_steps < 20 else order)


def settings(method: str, num_steps: int, compat: str = "corrected", **changes) -> Settings:
    """The settings of a published method name, `ltsp1`..`ltsp4`, `stsp1`..`stsp4`, or of an unsplit solver.

    Args:
      method: a published name, or any solver of the engine, which then takes the guided denoiser as it is.
      num_steps: of the grid: the corrected scheme keeps `stable_order`; the official one does not.
      changes: fields of `Settings` to set instead.

    Raises: ValueError for another name.
    """
    published = re.fullmatch(r"(ltsp|stsp)([1-4])", method)
    if published:
        order = int(published[2])
        if compat == "official":
            found = Settings(_PUBLISHED[published[1]], "ipndm", order, compat=compat)
        else:
            found = Settings(_PUBLISHED[published[1]], "ipndm_v", stable_order(order, num_steps), compat=compat)
        if changes.get("solver") in _ONE_ORDER:
            found = dataclasses.replace(found, order=0)
        return dataclasses.replace(found, **changes)
    if method in multistep.SOLVERS or method in single_step.STEPS:
        return dataclasses.replace(Settings("none", method, compat=compat), **changes)
    names = [f"{name}{order}" for name in _PUBLISHED for order in (1, 2, 3, 4)]
    known = sorted({*names, *multistep.SOLVERS, *single_step.STEPS})
    close = difflib.get_close_matches(method, known, 1)
    # The published README's own command says stps4, which the published program takes for ancestral sampling.
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {known}."
    raise ValueError(f"--method={method!r} is unknown; {hint}")


# --- the step --------------------------------------------------------------------------------------------------------

SOLVE, KICK, PROJECT = 0, 1, 2


class Projections(NamedTuple):
    """One projection a row: y <- project(input_scale y, s)/input_scale."""

    s: Any
    input_scale: Any


class Rows(NamedTuple):
    """One row an update, [m]; of the three parts the one that `kind` names is used, the others are filled up."""

    kind: Any  # int: SOLVE, KICK or PROJECT
    solver: Any  # rows of D
    kick: Kicks
    projection: Projections


class Operands(NamedTuple):
    """What stays fixed: the network, the gradient of log p, what replaces the observed part, the bound of a kick."""

    denoiser: Any
    guidance: Any
    projection: Any
    clip: Any


@dataclasses.dataclass(frozen=True)
class SplitStep:
    """One update, whichever it is. The state is D's own; a kick or a projection changes its y."""

    solve: Step
    kick: Callable[[Any, Image, Kicks], Image]

    def __call__(self, operands: Operands, state: Any, row: Rows) -> tuple[Any, tuple]:
        def kicked(state):
            change = self.kick(operands.guidance, state.y, row.kick).astype(state.y.dtype)
            return state._replace(y=state.y + limit(change, operands.clip * row.kick.length))

        def projected(state):
            scale, s = row.projection.input_scale, row.projection.s
            return state._replace(y=(operands.projection(scale * state.y, s) / scale).astype(state.y.dtype))

        def solved(state):
            return self.solve(operands.denoiser, state, row.solver)[0]

        branches = [solved]
        branches.append(kicked if operands.guidance is not None else lambda state: state)
        branches.append(projected if operands.projection is not None else lambda state: state)
        return jax.lax.switch(row.kind, branches, state), ()


# --- the order of the rows -------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """A run before it has a network: the rows in their order, the step, the state's start, what it costs an image."""

    rows: Rows
    step: SplitStep
    init: Callable[[Image], Any]
    nfe: int
    gradient_calls: int
    ends: np.ndarray  # [n] the row that completes each step of the grid

    def select_steps(self, records: Any) -> Any:
        """Records of every update -> those at the end of each step of the grid."""
        return jax.tree.map(lambda leaf: leaf[self.ends], records)


def plan(
    settings: Settings,
    grid: TimeGrid,
    schedule: Schedule,
    guidance_cost: tuple[int, int] = (0, 1),
    shares_call: bool = False,
    projects: bool = False,
    curvature: Curvature | None = None,
    input_scale: Table | None = None,
) -> Plan:
    """The rows of a guided run, float64 NumPy.

    Args:
      grid: N + 1 noise scales; the last may be 0.
      guidance_cost: network and gradient calls of one gradient (`guidance.cost`).
      shares_call: an unsplit gradient comes with the network's estimate.
      projects: a projection follows each step.
      curvature: of the guidance, for automatic substeps.
      input_scale: alpha(s)/alpha(s_model) at s[:-1] where network times were learned apart (`multistep.table`).

    Raises: ValueError for automatic substeps without a curvature, for an input_scale with a D that has none, and what
    the tables of D raise.
    """
    if settings.splitting != "none" and settings.substeps == 0 and curvature is None:
        raise ValueError(
            "config.guidance.substeps=0 (automatic) needs the curvature of log p, which this guidance does not state; "
            "give a number, or measure it with sampling.conditional.measured_curvature."
        )
    solve, init, table, rows_a_step = _network_rows(settings, grid, input_scale)
    network, gradient = guidance_cost
    if settings.splitting == "none":
        before = after = [_no_kicks()] * grid.num_steps
        told = _told(settings.solver, table)
        active = int(np.count_nonzero(schedule(told)))
        nfe, gradients = len(told) + active * (network - shares_call), active * gradient
    else:
        before, after = _kicks(settings, grid, schedule, curvature)
        evaluations = sum(int(conditional.evaluations(settings.conditional, kicks).sum()) for kicks in before + after)
        nfe, gradients = len(_told(settings.solver, table)) + evaluations * network, evaluations * gradient
    projection = _projections(settings, grid) if projects else None
    rows, ends = _interleave(table, rows_a_step, before, after, projection)
    return Plan(rows, SplitStep(solve, conditional.SOLVERS[settings.conditional]), init, nfe, gradients, ends)


def _network_rows(
    settings: Settings, grid: TimeGrid, input_scale: Table | None
) -> tuple[Step, Callable[[Image], Any], Any, np.ndarray]:
    """The step of D, its initial state, its table, and how many rows of it each step of the grid takes."""
    one = np.ones(grid.num_steps, int)
    if settings.order and settings.solver in _ONE_ORDER:
        raise ValueError(f"{settings.solver} has one order only; leave config.sampling.order at 0.")
    published = 0
    if settings.compat == "official" and settings.splitting == "none":
        published = published_splitting.plms_order(settings.solver)
    if input_scale is not None and (published or settings.solver in single_step.STEPS):
        raise ValueError(
            f"{settings.solver} feeds its network at the times it steps to, so network times learned apart do not go "
            "with it; choose a multistep solver with the corrected scheme, such as 'ipndm_v', or a plain grid."
        )
    if settings.solver in single_step.STEPS:
        return single_step.STEPS[settings.solver], single_step.init, single_step.rows(grid), one
    if published:
        one[0] = 2
        return published_splitting.plms_step, multistep.init, published_splitting.plms(grid, published), one
    order: dict[str, Any] = {"order": settings.order} if settings.order else {}
    return multistep.step, multistep.init, multistep.table(settings.solver, grid, input_scale, **order), one


def _told(solver: str, table: Any) -> np.ndarray:
    """The noise scale of every network call of D."""
    if solver in single_step.STEPS:
        second = table.s_model_next if solver == "heun" else np.sqrt(table.s_model * table.s_model_next)
        return np.concatenate([table.s_model, second[table.s_next > 0]])
    return np.asarray(table.s_model if isinstance(table, multistep.Coefficients) else table.solver.s_model)


def _kicks(
    settings: Settings, grid: TimeGrid, schedule: Schedule, curvature: Curvature | None
) -> tuple[list[Kicks], list[Kicks]]:
    """The kicks before and after the network step of each step of the grid, without those that take no gradient."""
    before, after = _all_kicks(settings, grid, schedule, curvature)

    def active(kicks: Kicks) -> Kicks:
        acts = conditional.evaluations(settings.conditional, kicks) > 0
        return Kicks(*(column[acts] for column in kicks))

    return [active(kicks) for kicks in before], [active(kicks) for kicks in after]


def _all_kicks(
    settings: Settings, grid: TimeGrid, schedule: Schedule, curvature: Curvature | None
) -> tuple[list[Kicks], list[Kicks]]:
    def along(*nodes: float) -> Kicks:
        parts = [
            conditional.subdivide(s, s_next, schedule, curvature, settings.substeps)
            for s, s_next in zip(nodes[:-1], nodes[1:], strict=True)
        ]
        return conditional.kicks(np.concatenate([part[:-1] for part in parts] + [nodes[-1:]]), schedule)

    start, stop = grid.s[:-1], grid.s[1:]
    if settings.splitting == "lie_trotter":
        return [along(a, b) for a, b in zip(start, stop, strict=True)], [_no_kicks()] * grid.num_steps
    steps = list(zip(start, (start + stop) / 2, stop, strict=True))
    if settings.compat == "official":
        return [along(a, m) for a, m, b in steps], published_splitting.second_half_kicks(grid, schedule)
    # Into s = 0 both halves come first: the network has the last word on the image.
    before = [along(a, m) if b else along(a, m, b) for a, m, b in steps]
    return before, [along(m, b) if b else _no_kicks() for a, m, b in steps]


def _no_kicks() -> Kicks:
    return Kicks(*[np.zeros(0)] * len(Kicks._fields))


def _projections(settings: Settings, grid: TimeGrid) -> Projections:
    if settings.compat == "official":
        return Projections(*published_splitting.projection_scales(grid, settings.splitting == "strang"))
    return Projections(grid.s[1:], np.ones(grid.num_steps))


def _interleave(
    table: Any, rows_a_step: np.ndarray, before: list[Kicks], after: list[Kicks], projection: Projections | None
) -> tuple[Rows, np.ndarray]:
    """The rows in the order they run, and the last one of each step of the grid."""
    kinds: list[int] = []
    ends: list[int] = []
    for n, count in enumerate(rows_a_step):
        kinds += [KICK] * len(before[n].s) + [SOLVE] * int(count) + [KICK] * len(after[n].s)
        kinds += [PROJECT] * (projection is not None)
        ends.append(len(kinds) - 1)
    kind = np.array(kinds)
    parts = [part for pair in zip(before, after, strict=True) for part in pair]
    unused = Kicks(*np.ones((len(Kicks._fields), 1)))
    unused_projection = Projections(np.ones(1), np.ones(1))

    def spread(rows: Any, fallback: Any, which: int) -> Any:
        """`rows` at the places of their kind; elsewhere the row before, which nobody reads."""
        rows = rows if (kind == which).any() else fallback
        index = np.maximum(np.cumsum(kind == which) - 1, 0)
        return jax.tree.map(lambda column: column[index], rows)

    kicks = Kicks(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    rows = Rows(
        kind,
        spread(table, table, SOLVE),
        spread(kicks, unused, KICK),
        spread(projection, unused_projection, PROJECT),
    )
    return rows, np.array(ends)


# --- the sampler -----------------------------------------------------------------------------------------------------


def operands(settings: Settings, denoiser: Denoiser, guidance: Any, schedule: Schedule, projection: Any) -> Operands:
    """What the step of a plan is given."""
    schedule = Schedule(*(jnp.asarray(leaf, float) for leaf in schedule))
    if settings.splitting == "none" and guidance is not None:
        return Operands(Guided(denoiser, guidance, schedule), None, projection, schedule.clip)
    return Operands(denoiser, guidance, projection, schedule.clip)


def create(
    settings: Settings,
    denoiser: Denoiser,
    grid: TimeGrid,
    shape: tuple[int, int, int],
    prior_scale: float,
    guide: Callable[[Keys], Any] | None = None,
    schedule: Schedule = UNIT,
    project: Callable[[Keys], Any] | None = None,
    curvature: Curvature | None = None,
    record: bool = False,
    input_scale: Table | None = None,
) -> Sampler:
    """The sampler of a guided run, for images of `shape` (h, w, c); see `denoising.create` for the rest.

    Args:
      denoiser: (y, s) -> x0, thresholded as wished.
      guide: the keys of the images -> the guidance of those images, a pytree (see `guidance`); None for none.
      schedule: how strongly; another scale, interval or clip compiles nothing anew.
      project: the keys of the images -> (y, s) -> y, applied after each step at its new noise scale.
      curvature: of the guidance by noise scale, for automatic substeps (`settings.substeps = 0`).
      record: keep the state and the x0 estimate after every update: more than one a step (`Plan.ends`).
      input_scale: for a grid whose network times were learned apart (`learned.input_scale`).

    Network and gradient calls are counted apart. Raises: ValueError if the guidance has no flow and the settings ask
    for it, and what `plan` raises.
    """
    guided = jax.eval_shape(guide, jax.random.split(jax.random.key(0), 2)) if guide else None
    if guided is not None and settings.conditional == "flow" and not hasattr(guided, "flow"):
        raise ValueError(
            f"config.guidance.conditional='flow': {type(guided).__name__} guidance has no flow in closed form, only "
            "guidance by linear observations has; choose 'euler' or 'heun'."
        )
    rows_schedule = schedule if guide else schedule._replace(scale=0.0)
    run = plan(
        settings,
        grid,
        rows_schedule,
        cost(guided),
        hasattr(guided, "x0_and_gradient"),
        project is not None,
        curvature,
        input_scale,
    )

    def fixed(keys: Keys) -> Operands:
        return operands(settings, denoiser, guide and guide(keys), schedule, project and project(keys))

    sampler = denoising.create(run.step, run.init, fixed, run.rows, run.nfe, shape, prior_scale, record)
    return sampler._replace(gradient_calls=run.gradient_calls)


def stability_warning(settings: Settings, grid: TimeGrid, schedule: Schedule, curvature: Curvature) -> str | None:
    """What to say before a run whose Euler kicks overshoot; None if they do not."""
    if settings.splitting == "none" or settings.conditional != "euler":
        return None
    before, after = _kicks(settings, grid, schedule, curvature)
    kicks = Kicks(*(np.concatenate(column) for column in zip(*before, *after, strict=True)))
    factors = conditional.stiffness(kicks, curvature)
    if not (factors >= 2).any():
        return None
    worst = factors.argmax()
    return (
        f"The guidance is too strong for its steps: at noise scale {kicks.s[worst]:.3g} an Euler kick has stiffness "
        f"{factors[worst]:.3g}, stable below 2. Set config.guidance.substeps=0 (automatic), "
        "config.guidance.conditional='flow' if the guidance is linear, a smaller scale, or more steps."
    )
