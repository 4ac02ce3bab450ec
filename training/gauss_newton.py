"""Damped Gauss-Newton for a student's few numbers: what Adam needs hundreds of updates for takes under ten.

With residuals r = student - teacher of all pixels of a batch and J their derivative with respect to the numbers v that
are learned, an update solves (J^T J + damping diag(J^T J)) dv = -J^T r (Levenberg and Marquardt) and is taken only if
it lowers the loss of its batch; the damping follows. J is taken by differences, a run of the student a number, without
a single gradient of the network: for LD3's 2 (N - 1) numbers that is cheaper than Adam, for GS's N (N + 3) - 2 it is
at few steps. The loss is the squared distance, whatever `Objective.distance` says.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from training.ld3 import Params

_DIFFERENCE = 1e-2  # of a number; large against float32's rounding of an image, small against what they move by
_TRIES = 6  # dampings an update tries before it leaves the numbers as they are
_LEAST = 1e-7


class Damping(NamedTuple):
    """What goes from update to update."""

    value: jax.Array


def init(params: Params) -> Damping:
    """Before the first update."""
    del params
    return Damping(jnp.asarray(1e-3))


def free(params: Params) -> np.ndarray:
    """Places, among all numbers in a row, of those that change anything.

    Of the logits the first cancels, and so does a number added to all; the ends of the shifts are fixed; columns of
    coefficients beyond the history are 0.
    """
    marks = {
        name: np.tri(len(leaf), leaf.shape[1]) if leaf.ndim == 2 else np.ones(leaf.shape)
        for name, leaf in params.items()
    }
    marks["logits"][:2] = 0
    if "shifts" in marks:
        marks["shifts"][[0, -1]] = 0
    return np.flatnonzero(np.concatenate([marks[name].ravel() for name in sorted(marks)]))


def update(
    residuals: Callable[[Params], np.ndarray], params: Params, damping: Damping
) -> tuple[Params, Damping, float]:
    """One update: (parameters, damping, loss before it). `residuals(params)` -> a NumPy vector of fixed length."""
    flat, unflatten = ravel_pytree(params)
    places, values = free(params), np.asarray(flat, np.float64)
    dtype = flat.dtype

    def at(changed: np.ndarray) -> np.ndarray:
        return np.asarray(residuals(unflatten(jnp.asarray(changed, dtype))), np.float64)

    r = at(values)
    columns = []
    for place in places:
        moved = values.copy()
        moved[place] += _DIFFERENCE
        columns.append((at(moved) - r) / _DIFFERENCE)
    jacobian = np.stack(columns, axis=1)
    squares, slope, before = jacobian.T @ jacobian / len(r), jacobian.T @ r / len(r), float((r**2).mean())
    value = float(damping.value)
    for _ in range(_TRIES):
        diagonal = np.diag(squares) + 1e-12
        trial = values.copy()
        trial[places] -= np.linalg.solve(squares + value * np.diag(diagonal), slope)
        if (at(trial) ** 2).mean() < before:
            taken = unflatten(jnp.asarray(trial, dtype))
            return taken, Damping(jnp.asarray(max(value / 5, _LEAST))), before
        value *= 5
    return params, Damping(jnp.asarray(value)), before
