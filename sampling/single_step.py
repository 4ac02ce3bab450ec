"""One-step solvers of second order: two network calls a step and no memory, so a step may start anywhere.

That is what guidance by splitting needs for order 2, and what stochastic samplers need, whose noise makes the past
useless. In y = x/alpha and s = sigma/alpha, as in `sampling.multistep`. A last step to s = 0 takes one call.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image
from sampling import denoising
from sampling.base import Sampler, Step, TimeGrid
from sampling.denoising import Denoiser


class Rows(NamedTuple):
    """One row a step, [n]; the network is told s_model at the start and s_model_next at the end."""

    s: Any
    s_next: Any
    s_model: Any
    s_model_next: Any


class State(NamedTuple):
    """y at the next grid point and the last x0 estimate, [b, h, w, c]."""

    y: Image
    x0: Image


def init(y: Image) -> State:
    """The state before the first step; y = x/alpha at s[0]."""
    return State(y, jnp.zeros_like(y))


def rows(grid: TimeGrid) -> Rows:
    """The steps along a grid."""
    return Rows(grid.s[:-1], grid.s[1:], grid.s_model[:-1], grid.s_model[1:])


def num_calls(rows: Rows) -> int:
    """Network calls an image: two a step, one for a step that ends at s = 0."""
    return len(rows.s) + int(np.count_nonzero(rows.s_next))


def heun_step(denoiser: Denoiser, state: State, row: Rows) -> tuple[State, tuple]:
    """Heun's method for dy/ds = (y - x0)/s: Euler, then the mean of the slopes at both ends. Order 2, 2 NFE.

    Karras et al. (2022), "Elucidating the design space of diffusion-based generative models", algorithm 1.
    """
    y = state.y
    x0 = denoiser(y, row.s_model).astype(y.dtype)
    slope = (y - x0) / row.s_model
    euler = y + (row.s_next - row.s) * slope

    def correct() -> State:
        x0_next = denoiser(euler, row.s_model_next).astype(y.dtype)
        slope_next = (euler - x0_next) / row.s_model_next
        return State(y + (row.s_next - row.s) * (slope + slope_next) / 2, x0_next)

    return jax.lax.cond(row.s_next > 0, correct, lambda: State(euler, x0)), ()


def dpmpp_2s_step(denoiser: Denoiser, state: State, row: Rows) -> tuple[State, tuple]:
    """DPM-Solver++(2S) with its midpoint in lam: DDIM half way, then the whole step with x0 from there. Order 2, 2 NFE.

    Lu et al. (2022), "DPM-Solver++: Fast solver for guided sampling of diffusion probabilistic models", r = 1/2.
    """
    y = state.y
    x0 = denoiser(y, row.s_model).astype(y.dtype)

    def ddim(x0: Image, s_next: jax.Array) -> Image:
        return x0 + s_next / row.s * (y - x0)

    def second() -> State:
        middle = jnp.sqrt(row.s * row.s_next)
        x0_middle = denoiser(ddim(x0, middle), jnp.sqrt(row.s_model * row.s_model_next)).astype(y.dtype)
        return State(ddim(x0_middle, row.s_next), x0_middle)

    return jax.lax.cond(row.s_next > 0, second, lambda: State(ddim(x0, row.s_next), x0)), ()


STEPS: dict[str, Step] = {"heun": heun_step, "dpmpp_2s": dpmpp_2s_step}


def create(
    solver: str,
    denoiser: Denoiser,
    grid: TimeGrid,
    shape: tuple[int, int, int],
    prior_scale: float,
    record: bool = False,
) -> Sampler:
    """The sampler of a one-step solver (a key of `STEPS`), see `denoising.create`. ValueError for another name."""
    if solver not in STEPS:
        raise ValueError(f"config.sampling.method={solver!r} is no one-step solver; choose one of {sorted(STEPS)}.")
    table = rows(grid)
    return denoising.create(
        STEPS[solver], init, lambda keys: denoiser, table, num_calls(table), shape, prior_scale, record
    )
