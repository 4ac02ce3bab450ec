"""Students that know where they are going: one network call maps noise to an image; a few more refine it.

`distilled` students (progressive distillation) step by DDIM along the grid they were made for. `consistency` students
map any point of a path to its end, so they may be called once, or again after fresh noise was added (Song et al. 2023,
"Consistency models", algorithm 1). Both are rows for loops that exist already. `dsno` students see noise alone, once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, PerImage, Scalar, Table
from sampling import denoising, multistep, sde_solvers, single_step
from sampling.base import Sampler, TimeGrid
from sampling.denoising import Denoiser


@functools.partial(jax.tree_util.register_dataclass, data_fields=["denoiser"], meta_fields=["s_min"])
@dataclasses.dataclass(frozen=True)
class Consistency:
    """The boundary wrapper: f(y, s) = k y + (1 - k) denoiser(y, s) with k = (s_min/s)^2, so that f(y, s_min) = y.

    Whatever the denoiser is, at the lowest noise scale its image is what it is given; far above, f is the denoiser, so
    that a pretrained one is a good start. At and below s_min the network is told s_min. 1 NFE.
    """

    denoiser: Denoiser
    s_min: float

    def __call__(self, y: Image, s: Scalar | PerImage) -> Image:
        s = jnp.maximum(s, self.s_min)
        kept = jnp.broadcast_to((self.s_min / s) ** 2, y.shape[:1])[:, None, None, None].astype(y.dtype)
        return kept * y + (1 - kept) * self.denoiser(y, s)


def jump(denoiser: Denoiser, state: single_step.State, row: single_step.Rows) -> tuple[single_step.State, tuple]:
    """Straight to the image, whatever s_next is: y' = f(y, s). 1 NFE."""
    x0 = denoiser(state.y, row.s_model).astype(state.y.dtype)
    return single_step.State(x0, x0), ()


def consistency(s: Table, s_min: float) -> sde_solvers.Rows:
    """Calls at the noise scales s [n], for `NoisyStep(jump)`: noise of variance s_k^2 - s_min^2 is added before call k.

    n NFE. The first noise scale is that of the prior, whose noise the state has already.
    """
    s = np.asarray(s, np.float64)
    noise_std = np.append(0.0, np.sqrt(s[1:] ** 2 - s_min**2))
    return sde_solvers.Rows(
        noise_std, np.arange(len(s)), single_step.rows(TimeGrid(np.append(s, 0.0), np.append(s, 0.0)))
    )


def create_consistency(
    s: Table,
    s_min: float,
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    prior_scale: float,
    record: bool = False,
) -> Sampler:
    """The sampler of a consistency student called at noise scales s [n]."""
    student = Consistency(denoiser, s_min)
    rows = consistency(s, s_min)
    return sde_solvers.create(jump, single_step.init, rows, len(s), student, shape, prior_scale, record)


def create_distilled(
    s: Table, denoiser: Denoiser, shape: tuple[int, int, int], prior_scale: float, record: bool = False
) -> Sampler:
    """The sampler of a progressively distilled student: DDIM on its own grid s [n + 1], the last 0. n NFE."""
    rows: Any = multistep.table("ddim", TimeGrid(np.asarray(s, np.float64), np.asarray(s, np.float64)))
    return multistep.create(rows, denoiser, shape, prior_scale, record)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["operator"], meta_fields=["prior_scale"])
@dataclasses.dataclass(frozen=True)
class FromNoise:
    """An operator (DSNO) as a denoiser: it sees the noise alone, y / prior_scale, and no noise scale."""

    operator: Callable[[Image], Image]
    prior_scale: float

    def __call__(self, y: Image, s: Scalar) -> Image:
        return self.operator(y / self.prior_scale)


def create_operator(
    operator: Callable[[Image], Image],
    s_max: float,
    shape: tuple[int, int, int],
    prior_scale: float,
    record: bool = False,
) -> Sampler:
    """The sampler of a neural operator, noise [b, h, w, c] -> image; a pytree, its parameters as leaves. 1 NFE."""
    student, s = FromNoise(operator, prior_scale), np.array([s_max, 0.0])
    rows = single_step.rows(TimeGrid(s, s))
    return denoising.create(jump, single_step.init, lambda keys: student, rows, 1, shape, prior_scale, record)
