"""What the published splitting program computes where the corrected scheme of `sampling.splitting` differs.

Kept to compare with published figures (compat "official"). The program is written in the VP variable x = alpha y with
alpha^2 = 1/(1 + s^2), and tells networks the time of a grid point; everything below is that in y and s:

* PLMS calls the network once more in its first step, and its last step takes the newest eps unmixed;
* the second half kick of Strang takes its weight from the middle of the step but its gradient from the end, and in the
  step to s = 0 it moves the finished image by a gradient taken at the last noise scale before;
* a projection is told the noise scale from before the step.
"""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from array_types import Table
from sampling import multistep
from sampling.base import TimeGrid
from sampling.conditional import Kicks
from sampling.denoising import Denoiser
from sampling.guidance import Schedule
from sampling.multistep import Coefficients, State


class PlmsRows(NamedTuple):
    """A multistep table one of whose calls is not remembered."""

    solver: Coefficients
    forget: Any  # [n] bool: drop this call from the history once it is used


def plms_order(method: str) -> int:
    """k of plmsk or pndmk; 0 for any other solver."""
    found = re.fullmatch(r"(?:plms|pndm)([1-4])", method)
    return int(found[1]) if found else 0


def plms(grid: TimeGrid, order: int) -> PlmsRows:
    """PLMS as published, N + 1 rows and network calls: a first step by Heun's method, whose second call is forgotten,
    Adams-Bashforth weights of equal steps, and the estimate x0 itself at the end (s = 0).

    Raises: ValueError for fewer than two steps, where the published program fails.
    """
    n = grid.num_steps
    if n < 2:
        raise ValueError(f"plms{order} as published needs at least 2 steps, got {n}; raise --steps or take ddim.")
    d = np.diff(grid.s)
    predict = np.zeros((n + 1, multistep.HISTORY))
    predict[0, 0] = d[0]
    # From the Euler point of the row before: y + d (e1 + e2)/2 in all.
    predict[1, :2] = d[0] / 2, -d[0] / 2
    for step in range(1, n):
        k = 1 if step == n - 1 else min(step + 1, order)
        predict[step + 1, :k] = d[step] * np.array(multistep.ADAMS_BASHFORTH[k])
    told = np.concatenate([grid.s_model[:2], grid.s_model[1:-1]])
    zeros, ones = np.zeros(n + 1), np.ones(n + 1)
    table = Coefficients(told, ones, 1 / told, -1 / told, zeros, np.zeros_like(predict), ones, predict)
    return PlmsRows(table, np.arange(n + 1) == 1)


def plms_step(denoiser: Denoiser, state: State, row: PlmsRows) -> tuple[State, tuple]:
    """`multistep.step`, forgetting the newest value of the history where the row says so. 1 NFE."""
    state, record = multistep.step(denoiser, state, row.solver)
    history = jnp.where(row.forget, jnp.roll(state.history, -1, axis=0), state.history)
    return state._replace(history=history), record


def second_half_kicks(grid: TimeGrid, schedule: Schedule) -> list[Kicks]:
    """Strang's second half kicks, one a step: weight of the middle m, gradient of the end.

    In x: x - (d/2) m/sqrt(1 + m^2) grad_x log p, and grad_x = sqrt(1 + s^2) grad_y. At the end s = 0 the program tells
    the classifier the last noise scale before and shows it the image itself, alpha not applied.
    """
    kicks = []
    for s, s_next in zip(grid.s[:-1], grid.s[1:], strict=True):
        middle, told = (s + s_next) / 2, s_next or s
        stretch = np.sqrt(1 + told**2)
        gain = (s - s_next) / 2 * middle / np.sqrt(1 + middle**2) * stretch * schedule(told)
        columns = (told, s_next, 1.0 if s_next else stretch, gain, 0.0, 0.0, (s - s_next) / 2)
        kicks.append(Kicks(*(np.array([column], np.float64) for column in columns)))
    return kicks


def projection_scales(grid: TimeGrid, strang: bool) -> tuple[Table, Table]:
    """What projections are told, and what y is multiplied by so that they see the program's x over their own alpha.

    They are told the noise scale of the step's start; Strang tells the last one that of the step before.
    """
    told = grid.s[:-1].copy()
    if strang and len(told) > 1:
        told[-1] = told[-2]
    return told, np.sqrt((1 + told**2) / (1 + grid.s[1:] ** 2))
