"""A multistep solver plus corrections from everything it has seen: GS, the general solver with additive coefficients.

    y[n+1] = solver(y[n], ...) + sum_j on_states[n, j] y[n-j] + sum_j on_outputs[n, j] x0[n-j],    j = 0 .. n

With coefficients of zero it is the solver itself. They are learned (`training.ld3`), about N (N + 1) of them for N
steps; every solver of the engine, and every linear one there can be, is a choice of them. 1 NFE a step.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from array_types import Image
from sampling import denoising, multistep
from sampling.base import Sampler
from sampling.denoising import Denoiser


class Rows(NamedTuple):
    """One row a step: that of the solver [n, ...] and the corrections [n, n], newest first; entries j > n are 0."""

    solver: multistep.Coefficients
    on_states: Any
    on_outputs: Any


class State(NamedTuple):
    """The solver's state, and all states and estimates so far, [n, b, h, w, c], newest first."""

    solver: multistep.State
    states: Any
    outputs: Any

    @property
    def y(self) -> Image:
        return self.solver.y

    @property
    def x0(self) -> Image:
        return self.solver.x0


def init(num_steps: int, y: Image) -> State:
    """The state before the first of `num_steps` steps. y: x/alpha at s[0], [b, h, w, c]."""
    shape = (num_steps, *y.shape)  # two arrays, for the loop donates them
    return State(multistep.init(y), jnp.zeros(shape, y.dtype), jnp.zeros(shape, y.dtype))


def step(denoiser: Denoiser, state: State, row: Rows) -> tuple[State, tuple]:
    """Applies one row. 1 NFE."""
    solver, _ = multistep.step(denoiser, state.solver, row.solver)
    states = jnp.concatenate([state.y[None], state.states[:-1]])
    outputs = jnp.concatenate([solver.x0[None], state.outputs[:-1]])
    corrections = multistep.combine(row.on_states, states) + multistep.combine(row.on_outputs, outputs)
    return State(solver._replace(y=solver.y + corrections), states, outputs), ()


def create(
    rows: Rows, denoiser: Denoiser, shape: tuple[int, int, int], prior_scale: float, record: bool = False
) -> Sampler:
    """The sampler of a table, for images of `shape` (h, w, c); N NFE. See `denoising.create`.

    Another number of steps compiles anew: N is in the shape of the history.
    """
    count = len(rows.on_states)
    return denoising.create(
        step, lambda y: init(count, y), lambda keys: denoiser, rows, count, shape, prior_scale, record
    )
