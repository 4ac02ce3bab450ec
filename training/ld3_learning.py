"""The default loop of LD3 and what goes past it: Adam on exact gradients, judged on noise that never moved.

The gradient of a student is taken step by step. Each step of the solver and its transpose is one small program, chained
from Python: the states between the steps are kept and each network call is made again on the way back, so memory is
that of one network call whatever the number of steps, one compilation serves every N, and no convolution's gradient
stands in a loop, which XLA's CPU backend runs 8-20 times slower. `ld3.loss` under `jax.grad` gives the same numbers.
The images of a microbatch are split over all devices.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from array_types import Image, PerImage
from sampling.base import Step
from sampling.denoising import Denoiser
from training import gauss_newton, ld3
from training.devices import spread
from training.ld3 import Distance, Objective, Params, Space, Student
from training.state import load_state, save_state

LOG_FILE = "ld3_log.jsonl"
IMAGES = -4  # axis of all leaves of a solver's state, [.., b, h, w, c]: laid alike, all steps run one program


class Problem(NamedTuple):
    """What is learned: a student on its space of grids, judged by an objective, with a network that stays as it is."""

    objective: Objective
    space: Space
    student: Student
    denoiser: Denoiser
    of: Callable[[np.ndarray], Denoiser] | None = (
        None  # that of images with these numbers, where each has its condition
    )

    def told(self, indices: np.ndarray | None, places: np.ndarray) -> "Problem":
        """The problem for the images at `places` among those with the numbers `indices`."""
        return self if self.of is None or indices is None else self._replace(denoiser=self.of(indices[places]))


class Pairs(NamedTuple):
    """Noise and the teacher's images, [n, h, w, c] float32: the first to learn from, the others to be judged on."""

    noise: np.ndarray
    targets: np.ndarray
    valid_noise: np.ndarray
    valid_targets: np.ndarray
    indices: np.ndarray | None = None  # numbers of the images, by which their conditions are found
    valid_indices: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of the loop.

    Attributes:
      num_steps: updates.
      batch_size: pairs an update; 0 takes all of them.
      microbatch: pairs in one network call.
      valid_every: updates between two looks at the validation pairs, and between saved states.
      seed: of the order of the pairs.
    """

    num_steps: int
    batch_size: int = 0
    microbatch: int = 8
    valid_every: int = 10
    seed: int = 0


class State(NamedTuple):
    """Everything that a resumed run needs."""

    step: jax.Array  # updates done
    params: Params
    best: Params  # those with the least validation loss so far
    best_loss: jax.Array
    opt_state: Any


# --- the gradient, one step at a time --------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("step",))
def _forward(step: Step, denoiser: Denoiser, state: Any, row: Any) -> Any:
    return step(denoiser, state, row)[0]


@functools.partial(jax.jit, static_argnames=("step",))
def _backward(step: Step, denoiser: Denoiser, state: Any, row: Any, cotangent: Any) -> tuple[Any, Any]:
    """The transpose of a step: cotangents of its state and of its row."""
    return jax.vjp(lambda state, row: step(denoiser, state, row)[0], state, row)[1](cotangent)


@functools.partial(jax.jit, static_argnames=("space", "student", "dtype"))
def _rows(space: Space, student: Student, dtype: Any, params: Params) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), ld3.rows(space, student, params))


@functools.partial(jax.jit, static_argnames=("space", "student", "dtype"))
def _rows_backward(space: Space, student: Student, dtype: Any, params: Params, cotangent: Any) -> Params:
    return jax.vjp(lambda params: _rows(space, student, dtype, params), params)[1](cotangent)[0]


@functools.partial(jax.jit, static_argnames=("distance",))
def _distance(distance: Distance, codec: Any, y: Image, target: Image) -> tuple[PerImage, Image]:
    """The distance of each image, and its derivative with respect to the image."""
    each, pull = jax.vjp(lambda y: ld3.compare(distance, codec, y, target), y)
    return each, pull(jnp.ones_like(each))[0]


@functools.partial(jax.jit, static_argnames=("distance",))
def _distances(distance: Distance, codec: Any, y: Image, target: Image) -> PerImage:
    return ld3.compare(distance, codec, y, target)


def run(problem: Problem, params: Params, noise: Image) -> Image:
    """The student's images from noise [b, h, w, c], as `ld3.solve`, step by step."""
    step, init = ld3.step_of(problem.student, params)
    table = _rows(problem.space, problem.student, noise.dtype, params)
    state = spread(init(problem.objective.prior_scale * noise), IMAGES)
    for number in range(len(jax.tree.leaves(table)[0])):
        state = _forward(step, problem.denoiser, state, _row(table, number))
    return state.y


def losses_and_gradient(
    problem: Problem, params: Params, noise: Image, target: Image, position: jax.Array | int
) -> tuple[PerImage, Params]:
    """`ld3.loss` of each pair [b], and the gradient of their sum. 2 N NFE, N of them with a gradient."""
    objective, space, student, denoiser = problem[:4]
    step, init = ld3.step_of(student, params)
    table = _rows(space, student, noise.dtype, params)
    begin, pull_begin = jax.vjp(lambda params: init(ld3.start(objective, params, noise, position)), params)
    states = [spread(begin, IMAGES)]
    for number in range(len(jax.tree.leaves(table)[0])):
        states.append(_forward(step, denoiser, states[-1], _row(table, number)))
    each, slope = _distance(objective.distance, objective.codec, states[-1].y, target)
    cotangent = jax.vjp(lambda state: state.y, states.pop())[1](slope)[0]
    of_rows = []
    while states:
        row = _row(table, len(states) - 1)
        cotangent, of_row = _backward(step, denoiser, states.pop(), row, spread(cotangent, IMAGES))
        of_rows.append(of_row)
    of_table = jax.tree.map(lambda *leaves: jnp.stack(leaves[::-1]), *of_rows)
    gradient = _rows_backward(space, student, noise.dtype, params, of_table)
    return each, jax.tree.map(jnp.add, gradient, pull_begin(cotangent)[0])


def _row(table: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], table)


def judge(
    problem: Problem,
    params: Params,
    noise: np.ndarray,
    targets: np.ndarray,
    microbatch: int,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """The loss of each pair [n], its noise as it is; in calls of one size, the last of them padded."""
    distance, codec = problem.objective.distance, problem.objective.codec
    each = []
    for start in range(0, len(noise), microbatch):
        places = np.minimum(np.arange(start, start + microbatch), len(noise) - 1)
        found = run(problem.told(indices, places), params, jnp.asarray(noise[places]))
        each.append(np.asarray(_distances(distance, codec, found, jnp.asarray(targets[places]))))
    return np.concatenate(each)[: len(noise)]


# --- the loop --------------------------------------------------------------------------------------------------------


def _batch(settings: Settings, count: int, step: int) -> np.ndarray:
    """Which pairs update `step` learns from: all, or the next few of a fresh order every time round."""
    size = settings.batch_size or count
    if size >= count:
        return np.arange(count)
    rounds = count // size
    order = np.random.Generator(np.random.Philox(key=settings.seed, counter=step // rounds)).permutation(count)
    return order[step % rounds * size :][:size]


@functools.partial(jax.jit, static_argnames=("optimizer",))
def _update(optimizer: optax.GradientTransformation, state: State, gradient: Params) -> State:
    change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return state._replace(step=state.step + 1, params=optax.apply_updates(state.params, change), opt_state=opt_state)


def check(pairs: Pairs, settings: Settings) -> None:
    """Raises ValueError for too few pairs or a microbatch that does not divide the batch."""
    n, size = len(pairs.noise), min(settings.batch_size or len(pairs.noise), len(pairs.noise))
    if n < 1 or len(pairs.valid_noise) < 1:
        raise ValueError(
            f"LD3 has {n} pairs to learn from and {len(pairs.valid_noise)} to be judged on; it needs at least one of "
            "each. Set config.ld3.num_train and num_valid, or make more with --mode=pairs."
        )
    if size % settings.microbatch:
        raise ValueError(
            f"{size} pairs an update (config.ld3.batch_size, at most config.ld3.num_train) are no multiple of "
            f"config.ld3.microbatch={settings.microbatch}; choose one that divides them."
        )


def learn(
    problem: Problem,
    params: Params,
    pairs: Pairs,
    settings: Settings,
    optimizer: optax.GradientTransformation | None,
    folder: Path,
    on_better: Callable[[Params, float, int], None] = lambda params, loss, step: None,
    on_update: Callable[[float], None] = lambda loss: None,
    on_look: Callable[[int, float, float], None] = lambda step, train, valid: None,
) -> Params:
    """The parameters with the least validation loss; from the state saved in `folder` where there is one.

    `optimizer`: of gradients; None takes damped Gauss-Newton, for the squared distance alone.

    Writes the state and a line of `ld3_log.jsonl` at each look at the validation pairs. `on_better(params, loss, step)`
    is told of each gain, `on_update(loss)` of each update, `on_look(step, train, valid)` of each look.

    Raises FloatingPointError at a loss or a gradient that is not finite; the last saved state and what `on_better` was
    told of are kept.
    """
    check(pairs, settings)
    folder.mkdir(parents=True, exist_ok=True)
    params = jax.tree.map(jnp.asarray, params)
    if problem.objective.radius:
        params = params | {"latents": jnp.zeros(pairs.noise.shape, pairs.noise.dtype)}
    fresh = State(
        jnp.zeros((), jnp.int32), params, params, jnp.asarray(np.inf), (optimizer or gauss_newton).init(params)
    )
    stored = load_state(folder, fresh)
    state = fresh if stored is None else stored
    train: list[float] = []
    for number in range(int(state.step), settings.num_steps + 1):
        looked = stored is not None and number == int(stored.step)  # states are saved at looks
        if (number % settings.valid_every == 0 or number == settings.num_steps) and not looked:
            state, valid = _look(problem, pairs, settings, state, train, folder, on_better)
            on_look(number, float(np.mean(train)) if train else float("nan"), valid)
            train = []
        if number == settings.num_steps:
            break
        if optimizer is None:
            state, loss, size = _gauss_newton(problem, state, pairs, settings, number)
        else:
            loss, gradient = _of_batch(problem, state.params, pairs, settings, number)
            size = float(optax.tree.norm(gradient))
        if not np.isfinite([loss, size]).all():
            raise FloatingPointError(
                f"LD3's loss is {loss} at update {number + 1}; the best schedule so far and the last state in {folder} "
                "are kept. Lower --config.optim.lr, or begin from another grid (--config.ld3.start)."
            )
        if optimizer is not None:
            state = _update(optimizer, state, gradient)
        train.append(loss)
        on_update(loss)
    return state.best


def _gauss_newton(
    problem: Problem, state: State, pairs: Pairs, settings: Settings, number: int
) -> tuple[State, float, float]:
    """The state after one update, the loss before it, and how far the numbers moved."""
    places = _batch(settings, len(pairs.noise), number)

    def residuals(params: Params) -> np.ndarray:
        parts = (places[start : start + settings.microbatch] for start in range(0, len(places), settings.microbatch))
        found = [
            np.asarray(run(problem.told(pairs.indices, part), params, jnp.asarray(pairs.noise[part])))
            - pairs.targets[part]
            for part in parts
        ]
        return np.concatenate(found).ravel()

    params, damping, loss = gauss_newton.update(residuals, state.params, state.opt_state)
    moved = float(optax.tree.norm(jax.tree.map(jnp.subtract, params, state.params)))
    return state._replace(step=state.step + 1, params=params, opt_state=damping), loss, moved


def _of_batch(problem: Problem, params: Params, pairs: Pairs, settings: Settings, number: int) -> tuple[float, Params]:
    """Mean loss and gradient of one update's pairs, a microbatch at a time."""
    places = _batch(settings, len(pairs.noise), number)
    total, gradient = 0.0, jax.tree.map(jnp.zeros_like, params)
    for start in range(0, len(places), settings.microbatch):
        part = places[start : start + settings.microbatch]
        noise, target = jnp.asarray(pairs.noise[part]), jnp.asarray(pairs.targets[part])
        told = problem.told(pairs.indices, part)
        each, found = losses_and_gradient(told, params, noise, target, jnp.asarray(part))
        total += float(each.sum())
        gradient = jax.tree.map(jnp.add, gradient, found)
    return total / len(places), jax.tree.map(lambda leaf: leaf / len(places), gradient)


def _look(
    problem: Problem,
    pairs: Pairs,
    settings: Settings,
    state: State,
    train: list[float],
    folder: Path,
    on_better: Callable[[Params, float, int], None],
) -> tuple[State, float]:
    """Judges the parameters, keeps them if they are the best, saves the state."""
    number = int(state.step)
    seen = pairs.valid_noise, pairs.valid_targets, settings.microbatch, pairs.valid_indices
    loss = float(judge(problem, state.params, *seen).mean())
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"LD3's validation loss is {loss} after {number} updates; the best schedule so far and the last state in "
            f"{folder} are kept. Lower --config.optim.lr, or begin from another grid (--config.ld3.start)."
        )
    if loss < float(state.best_loss):
        state = state._replace(best=state.params, best_loss=jnp.asarray(loss, state.best_loss.dtype))
        on_better(state.params, loss, number)
    line = {"step": number, "valid": loss} | ({"train": float(np.mean(train))} if train else {})
    with (folder / LOG_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
    save_state(folder, state)
    return state, loss


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, in the order of the updates; of several looks at one update the last."""
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]
