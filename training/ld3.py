"""Learning a solver of few steps from a teacher's images: LD3 and what goes past it.

The teacher is the same probability flow in many steps. A student is a solver of the engine, a function from a time grid
to a table of coefficients, run from the teacher's noise; what is learned is which entries of grid and table may move:

| name | learns | numbers for N steps |
|---|---|---|
| LD3 | noise scales, and those told to the network | N - 1 and N - 1 |
| as S4S | the weights of the history besides | about 4 N more |
| GS | corrections from all states and estimates besides (`sampling.general_solver`) | N (N + 1) more |

(LD3: Tong et al. 2024, "Learning to discretize denoising diffusion ODEs".)

Everything starts at the solver itself on a grid of choice: corrections at zero, network times at the grid. The
gradient runs through the table and the N network calls; that of the network's weights is never asked for.

`training.ld3_published` is the published training loop; here is what both share, and the loss of the default one: all
pairs a batch, Adam, exact gradients.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, PerImage, Table
from sampling import base, general_solver, multistep, single_step, time_grids
from sampling.base import TimeGrid
from sampling.denoising import Denoiser
from sde_lib import GaussianSDE

Params = dict[
    str, jax.Array
]  # logits and shifts [N + 1], weights [N, 4], on_eps and on_x0 [N, N], latents [n, h, w, c]
Distance = Callable[[Image, Image], PerImage]

LEARNED = {"ld3": (), "s4s": ("weights",), "gs": ("on_eps", "on_x0")}  # besides logits and shifts
SPACINGS = ("lam", "time")
BOUNDS = ("spacing", "own", "released")
_GAIN = 0.1  # corrections of a row move this much slower than a logit under one learning rate


# --- the grid --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Space:
    """What the numbers of a grid mean; hashable.

    Attributes:
      sde: the process; its clock and its alpha.
      s_max, s_min: the noise scales that the grid runs between.
      spacing: equal logits are even in "lam" = -log s, or in SDE "time" (as published for latent models).
      to_zero: the last point is 0 instead of s_min, so that the last network call is at a learned noise scale.
      share: how far a network time may go, in units of a spacing; at most 1/2, or neighbours could change places.
      bound: of which spacing: "spacing": the smallest of the grid, by clipping; "own" of each point, approached
        smoothly; "released": as the published program does it, where for "lam" the spacings are taken of the logits by
        mistake, so that the bound begins at 0.
    """

    sde: GaussianSDE
    s_max: float
    s_min: float
    spacing: str = "lam"
    to_zero: bool = False
    share: float = 0.5
    bound: str = "spacing"

    def __post_init__(self):
        if not 0 < self.s_min < self.s_max:
            raise ValueError(f"A grid runs from s_max down to s_min > 0, got {self.s_max:g} and {self.s_min:g}.")
        if self.spacing not in SPACINGS or self.bound not in BOUNDS:
            raise ValueError(
                f"config.ld3.spacing={self.spacing!r} must be one of {SPACINGS}, config.ld3.bound={self.bound!r} one "
                f"of {BOUNDS}."
            )
        if not 0 < self.share <= 0.5:
            raise ValueError(f"config.ld3.share={self.share:g} lies in (0, 0.5]: network times must keep their order.")


def points(space: Space, logits: jax.Array) -> jax.Array:
    """The grid in lam or in time, [N + 1]: cumulative sums of softmax(logits), brought to the range.

    The first logit cancels: its softmax is only what the sum starts from.
    """
    c = jnp.cumsum(jax.nn.softmax(logits))
    if space.spacing == "lam":
        first, last = -np.log(space.s_max), -np.log(space.s_min)
        return first + (last - first) * (c - c[0]) / (c[-1] - c[0])
    first, last = (float(space.sde.time(np.float64(s))) for s in (space.s_max, space.s_min))
    return last + (first - last) * jnp.flip((c - c[0]) / (c[-1] - c[0]))


def logits_of(space: Space, s: Table) -> Table:
    """The logits whose grid goes through the noise scales s [N + 1], for a start from a known grid.

    The ends are taken to be those of the space; ValueError if a point between them lies outside.
    """
    inner = np.asarray(s, np.float64)[1:-1]
    full = np.concatenate([[space.s_max], inner, [space.s_min]])
    if not (np.diff(full) < 0).all():
        raise ValueError(
            f"A grid to begin from needs decreasing noise scales between {space.s_max:g} and {space.s_min:g}, got "
            f"{np.asarray(s).tolist()}."
        )
    if space.spacing == "lam":
        steps = np.diff(-np.log(full))
    else:
        steps = np.flip(-np.diff(np.asarray(space.sde.time(full))))
    steps = steps / steps.mean()
    return np.log(np.concatenate([[1.0], steps]))


def corrections(space: Space, points: jax.Array, logits: jax.Array, shifts: jax.Array) -> jax.Array:
    """How far the times told to the network are from the grid, in lam or time, [N + 1]; 0 at both ends."""
    gaps = jnp.abs(jnp.diff(points))
    if space.bound == "own":
        bound = space.share * jnp.minimum(gaps[:-1], gaps[1:])
        inner = bound * jnp.tanh(shifts[1:-1])
    else:
        spacings = jnp.abs(jnp.diff(logits)) if (space.bound, space.spacing) == ("released", "lam") else gaps
        bound = jax.lax.stop_gradient(space.share * jnp.min(spacings))
        # At the bound itself the gradient passes, which jnp.clip would halve.
        inner = jnp.where(jnp.abs(shifts) <= bound, shifts, jnp.sign(shifts) * bound)[1:-1]
    return jnp.pad(inner, 1)


def grid(space: Space, params: Params) -> TimeGrid:
    """The noise scales that `logits` and `shifts` mean; differentiable. No shifts: the network is told the grid."""
    at = points(space, params["logits"])
    told = at + corrections(space, at, params["logits"], params["shifts"]) if "shifts" in params else at
    s: Any
    s_model: Any
    s, s_model = (jnp.exp(-x) if space.spacing == "lam" else space.sde.noise_scale(x) for x in (at, told))
    return TimeGrid(s.at[-1].set(0.0), s_model.at[-1].set(0.0)) if space.to_zero else TimeGrid(s, s_model)


# --- the student -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Student:
    """A solver whose grid is learned: a key of `multistep.SOLVERS` or `single_step.STEPS`, and its settings."""

    solver: str
    order: float = 0  # 0 is the solver's own default
    variant: str = ""
    published_gradient: bool = False  # of "unipc"

    def settings(self) -> dict[str, Any]:
        given = {"order": self.order, "variant": self.variant, "published_gradient": self.published_gradient}
        return {key: value for key, value in given.items() if value}

    @property
    def one_step(self) -> bool:
        return self.solver in single_step.STEPS

    def calls(self, num_steps: int, to_zero: bool) -> int:
        """Network calls an image."""
        return 2 * num_steps - to_zero if self.one_step else num_steps


def initial(space: Space, student: Student, num_steps: int, method: str = "ld3", start: Table | None = None) -> Params:
    """Parameters at which the student is its solver on the grid `start`, or on the even one of the space.

    method: a key of `LEARNED`. Raises ValueError for coefficients of a solver that has no table.
    """
    if method not in LEARNED:
        raise ValueError(f"config.ld3.learn={method!r} is unknown; choose one of {sorted(LEARNED)}.")
    if student.one_step and LEARNED[method]:
        raise ValueError(
            f"config.ld3.learn={method!r} learns coefficients of a multistep solver; {student.solver} has none. Choose "
            "another config.ld3.solver, or learn=ld3."
        )
    logits = np.ones(num_steps + 1) if start is None else logits_of(space, start)
    shapes = {"weights": (num_steps, multistep.HISTORY), "on_eps": (num_steps,) * 2, "on_x0": (num_steps,) * 2}
    params = {"logits": jnp.asarray(logits), "shifts": jnp.zeros(num_steps + 1)}
    return params | {name: jnp.zeros(shapes[name]) for name in LEARNED[method]}


def _pace(count: int, width: int) -> np.ndarray:
    """What a unit of each coefficient moves: 0 where column j of row n has no value behind it (j > n).

    The coefficients of a row add up, and Adam moves all by as much: together they move as one number does.
    """
    seen = np.tri(count, width)
    return _GAIN * seen / seen.sum(axis=1, keepdims=True)


def rows(space: Space, student: Student, params: Params) -> Any:
    """The rows of the student, differentiable with respect to `params`; what `step_of(student, params)` runs."""
    found = grid(space, params)
    if student.one_step:
        return single_step.rows(found)
    scale = None
    if "shifts" in params:
        alpha, told = (space.sde.alpha(space.sde.time(s[:-1])) for s in found)
        scale = alpha / told
    table = multistep.table(student.solver, found, scale, **student.settings())
    n = found.num_steps
    if "weights" in params:
        # In units of what the row adds up to, so that early and late steps learn at one pace.
        unit = jnp.sum(table.predict, axis=1, keepdims=True)
        free = unit * params["weights"] * _pace(n, multistep.HISTORY)
        table = table._replace(predict=table.predict + free)
    if "on_eps" not in params:
        return table
    return general_solver.Rows(table, *_on_history(found, table, params["on_eps"], params["on_x0"]))


def _on_history(grid: TimeGrid, table: multistep.Coefficients, on_eps: Any, on_x0: Any) -> tuple[Any, Any]:
    """Corrections in eps and x0, each in units of what a step does with it, as coefficients of states and estimates.

    States and estimates are nearly parallel late in a run and differ by orders of magnitude early: in them Adam's equal
    steps would be unequal ones. y[n+1] += (s' - s) sum_j a_j eps[n-j] + (1 - s'/s) sum_j b_j x0[n-j].
    """
    n = grid.num_steps
    pace = _pace(n, n)
    a = (grid.s[1:] - grid.s[:-1])[:, None] * pace * on_eps
    b = (1 - grid.s[1:] / grid.s[:-1])[:, None] * pace * on_x0
    past = np.maximum(np.arange(n)[:, None] - np.arange(n)[None], 0)
    told, scale = table.s_model[past], table.input_scale[past]
    return a * scale / told, b - a / told


def step_of(student: Student, params: Params) -> tuple[base.Step, Callable[[Image], Any]]:
    """The step function of the student's rows and its initial state."""
    if student.one_step:
        return single_step.STEPS[student.solver], single_step.init
    if "on_eps" in params:
        return general_solver.step, functools.partial(general_solver.init, len(params["on_eps"]))
    return multistep.step, multistep.init


def solve(
    space: Space,
    student: Student,
    params: Params,
    denoiser: Denoiser,
    y: Image,
    unrolled: bool = True,
    checkpoint: bool = False,
) -> Image:
    """The student's image from y = prior_scale noise, [b, h, w, c]; differentiable in `params` and y.

    Args:
      unrolled: steps written out, for the CPU, where gradients of convolutions in a loop are 8-20 times slower; else a
        scan, which compiles one step whatever their number.
      checkpoint: keep the states between the steps only, and run each network again on the way back: memory of one
        network call instead of N, for a third more time.
    """
    step, init = step_of(student, params)
    step = jax.checkpoint(step) if checkpoint else step
    table = jax.tree.map(lambda leaf: jnp.asarray(leaf, y.dtype), rows(space, student, params))
    if unrolled:
        return base.unroll(step, denoiser, init(y), table)[0].y
    return jax.lax.scan(lambda state, row: (step(denoiser, state, row)[0], None), init(y), table)[0].y


# --- the loss --------------------------------------------------------------------------------------------------------


def l2(x: Image, target: Image) -> PerImage:
    """Mean squared difference of each image, [b]."""
    return jnp.mean((x - target) ** 2, axis=(1, 2, 3))


def l1(x: Image, target: Image) -> PerImage:
    """Mean absolute difference of each image, [b]."""
    return jnp.mean(jnp.abs(x - target), axis=(1, 2, 3))


def huber(x: Image, target: Image, c: float = 0.03) -> PerImage:
    """Pseudo-Huber: sqrt(d^2 + c^2) - c averaged over pixels, [b]; c in units of the data range."""
    return jnp.mean(jnp.sqrt((x - target) ** 2 + c**2) - c, axis=(1, 2, 3))


DISTANCES: dict[str, Distance] = {"l1": l1, "l2": l2, "huber": huber}


def radius(shape: tuple[int, ...], num_steps: int) -> float:
    """How far the soft objective lets a training noise move, as published: 0.001 d / N^2, d numbers an image."""
    return 0.001 * float(np.prod(shape)) / num_steps**2


def into_ball(change: Image, radius: float) -> Image:
    """Each image's change [b, h, w, c], shortened to length `radius` where it is longer."""
    squares = jnp.sum(change**2, axis=(1, 2, 3), keepdims=True)
    # Bounded before the root, whose derivative at 0, where every change begins, is infinite.
    return change * jnp.minimum(1.0, radius / jnp.sqrt(jnp.maximum(squares, 1e-30)))


class Objective(NamedTuple):
    """What a student is judged by.

    Attributes:
      distance: of its image from the teacher's.
      prior_scale: what noise is multiplied with at the start of the grid.
      radius: of the ball around each training noise in which its private copy moves (soft objective); 0 is hard.
      unrolled, checkpoint: see `solve`.
      codec: of a latent model whose decoded images are compared, an object with `to_images`; None compares what the
        solver draws.
    """

    distance: Distance
    prior_scale: float
    radius: float = 0.0
    unrolled: bool = True
    checkpoint: bool = False
    codec: Any = None


def start(objective: Objective, params: Params, noise: Image, position: jax.Array | int | None) -> Image:
    """y at the start of the grid, from noise that may have moved within its ball (see `loss`)."""
    if objective.radius and position is not None and "latents" in params:
        moved = params["latents"][position] * (objective.radius / np.sqrt(np.prod(noise.shape[1:])))
        noise = noise + into_ball(moved, objective.radius)
    return objective.prior_scale * noise


def loss(
    objective: Objective,
    space: Space,
    student: Student,
    denoiser: Denoiser,
    params: Params,
    noise: Image,
    target: Image,
    position: jax.Array | None = None,
) -> PerImage:
    """The distance of each student image from the teacher's, [b]. N NFE, all with a gradient.

    `position` [b]: which rows of params["latents"] belong to the images: how far their noise has moved, in units of
    radius/sqrt(d) a number, for the soft objective. Without them the noise stays what it is, as when sampling.
    """
    y = start(objective, params, noise, position)
    found = solve(space, student, params, denoiser, y, objective.unrolled, objective.checkpoint)
    return compare(objective.distance, objective.codec, found, target)


def compare(distance: Distance, codec: Any, found: Image, target: Image) -> PerImage:
    """The distance of each image, [b], of what a codec makes of them if there is one."""
    if codec is None:
        return distance(found, target)
    return distance(codec.to_images(found), codec.to_images(target))


def frozen(space: Space, student: Student, params: Params) -> tuple[TimeGrid, dict[str, np.ndarray]]:
    """What is stored: the learned grid, checked, and the coefficients that were learned, in float64 NumPy."""
    with jax.enable_x64(True):
        wide = {key: jnp.asarray(np.asarray(value, np.float64)) for key, value in params.items() if key != "latents"}
        s, s_model = (np.asarray(x, np.float64) for x in grid(space, wide))
        learned = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), rows(space, student, wide))
        plain = {key: value for key, value in wide.items() if key != "weights"}
        given = rows(space, student, {key: value for key, value in plain.items() if not key.startswith("on_")})
        found: dict[str, np.ndarray] = {}
        if "on_eps" in params:
            found = {"on_states": learned.on_states, "on_outputs": learned.on_outputs}
            learned = learned.solver
        if "weights" in params:
            found["predict"] = learned.predict - np.asarray(given.predict)
    return time_grids.explicit(s, s_model, "the learned grid"), found
