"""Samplers of the published distillation programs that a distilled student does not want: kept to compare with them.

A student is deterministic, and DDIM on its own grid is its sampler (`sampling.one_pass`). The original program also
samples from DDPM's posterior ("noisy"); the unofficial one does so by default, with the image clipped ("ddpm"), or by a
DDIM that clips the image and the noise too ("clipped"), which truncates the Gaussian: a look, not a sampler.
Everything is written in y = x/alpha, where the posterior is the same for every process.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from array_types import OtherTable, Table
from sampling import denoising, multistep, sde_solvers, single_step
from sampling.base import Sampler, TimeGrid
from sampling.denoising import Denoiser
from sampling.sde_solvers import FoldedNoise, Operands


def posterior_std(s: Table, alpha: Table, variance: str = "small") -> OtherTable:
    """Standard deviation of y_{k+1} given y_k and the image, for each step of the grid s [n]: [m], m = n - 1.

    With r = s_{k+1}^2/s_k^2 the variance of x is "small", (1 - r) sigma_{k+1}^2, the posterior's own; "large",
    (1 - r) sigma_k^2; or "medium:f", the geometric mean of the two with weight f on the large one.

    alpha: that of the process at s, [n]. Raises ValueError for another name.
    """
    found = re.fullmatch(r"small|large|medium:(0|1|0?\.\d+)", variance)
    if not found:
        raise ValueError(
            f"config.sampling.compat.variance={variance!r} is unknown; choose 'small', 'large' or such as 'medium:0.3'."
        )
    share = {"small": 0.0, "large": 1.0}.get(variance) if found[1] is None else float(found[1])
    assert share is not None
    # 1 - r without cancellation where neighbouring levels are close.
    kept = -np.diff(s) * (s[:-1] + s[1:]) / s[:-1] ** 2
    ratio = alpha[:-1] * s[:-1] / (alpha[1:] * np.where(s[1:] > 0, s[1:], 1.0))  # sigma_k/sigma_{k+1}
    return np.where(s[1:] > 0, np.sqrt(kept) * s[1:] * ratio**share, 0.0)


def ancestral(grid: TimeGrid, alpha: Table, variance: str = "small") -> sde_solvers.Rows:
    """DDPM's posterior sampling for `NoisyStep(multistep.step)`: y' = r y + (1 - r) x0 + std z, N NFE.

    Ho, Jain and Abbeel (2020), "Denoising diffusion probabilistic models". The noise of a step is added before the
    next; the step to s = 0 returns the estimate.
    """
    n, s = grid.num_steps, grid.s
    keep = (s[1:] / s[:-1]) ** 2
    predict = np.zeros((n, multistep.HISTORY))
    predict[:, 0] = -np.diff(s) * (s[:-1] + s[1:]) / s[:-1] ** 2
    zeros, ones = np.zeros(n), np.ones(n)
    correct = np.zeros((n, multistep.HISTORY))
    rows = multistep.Coefficients(grid.s_model[:-1], ones, zeros, ones, zeros, correct, keep, predict)
    std = posterior_std(s, alpha, variance)
    return sde_solvers.Rows(np.append(0.0, std[:-1]), np.arange(n), rows)


class ClippedRows(NamedTuple):
    """One row a step, [n]."""

    s: Any
    toward: Any  # factor of the clipped noise estimate in y'
    noise_std: Any
    index: Any  # int: which noise of the image this is


def clipped(grid: TimeGrid, alpha: Table, eta: float = 0.0) -> ClippedRows:
    """The steps of DDIM with stochasticity `eta` for `ClippedStep`; eta = 1 has the posterior's variance."""
    std = eta * posterior_std(grid.s, alpha)
    return ClippedRows(grid.s[:-1], np.sqrt(grid.s[1:] ** 2 - std**2), std, np.arange(grid.num_steps))


@dataclasses.dataclass(frozen=True)
class ClippedStep:
    """y' = clip(x0) + toward clip(eps) + noise_std z, both clipped to [-limit, limit] and eps from the clipped x0.

    For data in [-1, 1]. 1 NFE.
    """

    limit: float = 1.2

    def __call__(self, operands: Operands, state: single_step.State, row: ClippedRows) -> tuple[Any, tuple]:
        y = state.y
        x0 = jnp.clip(operands.denoiser(y, row.s).astype(y.dtype), -self.limit, self.limit)
        eps = jnp.clip((y - x0) / row.s, -self.limit, self.limit)
        z = operands.noise(row.index, y)
        return single_step.State(x0 + row.toward * eps + row.noise_std * z, x0), ()


def create_ancestral(
    rows: sde_solvers.Rows, denoiser: Denoiser, shape: tuple[int, int, int], prior_scale: float, record: bool = False
) -> Sampler:
    """The sampler of `ancestral`; give it a thresholded denoiser for the unofficial program's "ddpm"."""
    n = len(rows.noise_std)
    return sde_solvers.create(multistep.step, multistep.init, rows, n, denoiser, shape, prior_scale, record)


def create_clipped(
    rows: ClippedRows,
    limit: float,
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    prior_scale: float,
    record: bool = False,
) -> Sampler:
    """The sampler of `clipped`."""
    return denoising.create(
        ClippedStep(limit),
        single_step.init,
        lambda keys: Operands(denoiser, FoldedNoise(keys)),
        rows,
        len(rows.s),
        shape,
        prior_scale,
        record,
    )
