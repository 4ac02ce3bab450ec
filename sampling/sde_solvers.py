"""Stochastic samplers that hold p(y; s) at every noise scale: EDM's churn, Restart and SA-Solver.

All three are a deterministic step with fresh noise before it, differing in which noise and which step:

* `edm` (churn) raises the noise a little before each Heun step;
* `restart` goes back up a long way a few times, then comes down with any deterministic solver;
* `sa` follows the reverse SDE with a stochasticity tau, by a multistep table like those of `sampling.multistep`.

The first two add noise by the forward process itself, so their only error is that of the deterministic steps.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from array_types import Image, Index, Keys
from sampling import denoising, multistep, single_step, time_grids
from sampling.base import Sampler, Step, TimeGrid
from sampling.coefficients import assemble, history_nodes, lagrange_integrals, rising_and_falling_orders
from sampling.denoising import Denoiser


class FoldedNoise(NamedTuple):
    """Noise that depends on the image and the step alone: normal(fold_in(key of the image, step + 1))."""

    keys: Keys  # [b]

    def __call__(self, step: Index, like: Image) -> Image:
        def draw(key):
            return jax.random.normal(jax.random.fold_in(key, step + 1), like.shape[1:], like.dtype)

        return jax.vmap(draw)(self.keys)


class PlayedNoise(NamedTuple):
    """Noise recorded elsewhere, [n, b, h, w, c]."""

    recorded: jax.Array

    def __call__(self, step: Index, like: Image) -> Image:
        return self.recorded[step].astype(like.dtype)


class Operands(NamedTuple):
    """What a stochastic step is given: the network and where its noise comes from."""

    denoiser: Denoiser
    noise: Any  # (step, like) -> Image, a pytree: FoldedNoise or PlayedNoise


class Rows(NamedTuple):
    """One row a step, [n]."""

    noise_std: Any  # of the noise added to y before the step
    index: Any  # int: which noise of the image this is
    solver: Any  # the rows of the deterministic step


@dataclasses.dataclass(frozen=True)
class NoisyStep:
    """y <- y + noise_std z, then a deterministic step. The NFE of that step."""

    step: Step

    def __call__(self, operands: Operands, state: Any, row: Rows) -> tuple[Any, Any]:
        z = operands.noise(row.index, state.y)
        return self.step(operands.denoiser, state._replace(y=state.y + row.noise_std * z), row.solver)


def create(
    step: Step,
    init: Callable[[Image], Any],
    rows: Rows,
    nfe: int,
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    prior_scale: float,
    record: bool = False,
) -> Sampler:
    """The sampler of rows made below: `step` and `init` are those of the deterministic solver inside, `nfe` its calls.

    Churn: (heun_step, init of single_step, `edm`, num_calls(rows.solver)). Restart: those of its solver. SA: (step,
    init of multistep, `sa`, N). The rest as in `denoising.create`.
    """

    def operands(keys: Keys) -> Operands:
        return Operands(denoiser, FoldedNoise(keys))

    return denoising.create(NoisyStep(step), init, operands, rows, nfe, shape, prior_scale, record)


# --- EDM -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Churn:
    """How much noise EDM's sampler adds (config.sampling.churn): at each step with s_min <= s <= s_max the noise scale
    grows by min(amount/N, sqrt(2) - 1) of itself; `inflation` multiplies the new noise (S_noise)."""

    amount: float = 0.0
    s_min: float = 0.0
    s_max: float = float("inf")
    inflation: float = 1.0

    def __post_init__(self):
        if self.amount < 0 or self.inflation <= 0 or not 0 <= self.s_min < self.s_max:
            raise ValueError(
                "config.sampling.churn needs amount >= 0, inflation > 0 and 0 <= s_min < s_max, got "
                f"{self.amount}, {self.inflation}, {self.s_min} and {self.s_max}."
            )


def edm(grid: TimeGrid, churn: Churn) -> Rows:
    """The steps of Karras et al. (2022), algorithm 2, for `NoisyStep(single_step.heun_step)`: 2N - 1 NFE to s = 0."""
    plain, n = single_step.rows(grid), grid.num_steps
    inside = (churn.s_min <= plain.s) & (plain.s <= churn.s_max)
    growth = np.where(inside, min(churn.amount / n, np.sqrt(2) - 1), 0.0)
    raised = plain._replace(s=plain.s * (1 + growth), s_model=plain.s_model * (1 + growth))
    noise_std = churn.inflation * np.sqrt(raised.s**2 - plain.s**2)
    return Rows(noise_std, np.arange(n), raised)


# --- Restart ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RestartInterval:
    """From s_min back up to s_max and down again in `num_steps` steps of a rho-7 grid, `repeats` times."""

    s_min: float
    s_max: float
    num_steps: int
    repeats: int

    def __post_init__(self):
        if not 0 < self.s_min < self.s_max or self.num_steps < 1 or self.repeats < 1:
            raise ValueError(
                "config.sampling.restart needs 0 < s_min < s_max, num_steps >= 1 and repeats >= 1, got "
                f"{self.s_min}, {self.s_max}, {self.num_steps} and {self.repeats}."
            )


def restart(
    solver_rows: Callable[[TimeGrid], Any], grid: TimeGrid, intervals: Sequence[RestartInterval], inflation: float = 1.0
) -> Rows:
    """The steps of Restart (Xu et al. 2023, "Restart sampling for improving generative processes").

    Args:
      solver_rows: rows of any deterministic solver on a grid: `single_step.rows` (the paper's Heun), or a multistep
        table such as `multistep.unipc`, whose warm-up begins each descent afresh.
      grid: the main descent. It is cut at the grid point nearest to each interval's s_min.
      inflation: factor of the added noise.

    Raises ValueError for an interval outside the grid, or whose s_min is nearest to an end of the grid.
    """
    legs, noise, begin = [], [], 0
    for interval in sorted(intervals, key=lambda interval: -interval.s_min):
        cut = int(np.argmin(np.abs(grid.s - interval.s_min)))
        bottom = grid.s[cut]
        if not (begin < cut < grid.num_steps or cut == begin > 0) or not bottom < interval.s_max <= grid.s[0]:
            raise ValueError(
                f"config.sampling.restart: the interval [{interval.s_min}, {interval.s_max}] must lie inside the grid, "
                f"from {grid.s[0]:g} to {grid.s[-1]:g}; its lower end is moved to the nearest inner grid point."
            )
        if cut > begin:
            legs.append(TimeGrid(grid.s[begin : cut + 1], grid.s_model[begin : cut + 1]))
            noise.append(0.0)
        down = time_grids.edm(interval.num_steps, interval.s_max, bottom)
        legs += [TimeGrid(down, down)] * interval.repeats
        noise += [inflation * np.sqrt(interval.s_max**2 - bottom**2)] * interval.repeats
        begin = cut
    legs.append(TimeGrid(grid.s[begin:], grid.s_model[begin:]))
    noise.append(0.0)
    noise_std = np.concatenate(
        [np.append(std, np.zeros(leg.num_steps - 1)) for std, leg in zip(noise, legs, strict=True)]
    )
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[solver_rows(leg) for leg in legs])
    return Rows(noise_std, np.arange(len(noise_std)), stacked)


# --- SA-Solver -------------------------------------------------------------------------------------------------------


def sa(
    grid: TimeGrid,
    tau: float = 1.0,
    order: int = 3,
    corrector_order: int = 3,
    s_min: float = 0.0,
    s_max: float = float("inf"),
) -> Rows:
    """SA-Solver on x0 for `NoisyStep(multistep.step)` (Xue et al. 2023, "SA-Solver: Stochastic Adams solver").

    For any tau the reverse process dy = (1 + tau^2)(y - x0)/s ds + tau sqrt(2 s) dw (backwards in s) has the marginals
    of the forward one: tau = 0 is the probability flow, 1 the usual reverse SDE. With r = 1 + tau^2 and h = lam' - lam,

    y' = e^(-r h) y + integral over the step of r e^(-r (lam' - lam)) x0(lam) dlam + s' sqrt(1 - e^(-2 tau^2 h)) z,

    where x0(lam) is interpolated by a polynomial through the last `order` estimates (Adams-Bashforth); as in UniPC the
    call of the next step then corrects the point, with `corrector_order` values, its own among them (Adams-Moulton),
    and the same noise. N NFE; order 2 in law. The noise of a step is added before the next; the last step is
    deterministic (tau = 0), so that no noise is left in the image. tau acts at s_min <= s <= s_max.
    """
    n = grid.num_steps
    # The corrector sees what the prediction was made from and one value more.
    for name, value, highest in (("order", order, 3), ("corrector_order", corrector_order, 4)):
        if not 1 <= value <= min(highest, n):
            raise ValueError(
                f"sa has {name} 1 to {highest} and at most the number of steps ({n}), not {value}; set "
                f"config.sampling.{name}, or raise --steps."
            )
    if tau < 0:
        raise ValueError(
            f"config.sampling.tau={tau} must not be negative; 0 is deterministic, 1 the usual reverse SDE."
        )
    s, s_next = grid.s[:-1], grid.s[1:]
    tau_squared = np.where((s >= s_min) & (s <= s_max) & (np.arange(n) < n - 1), tau**2, 0.0)
    rate, ratio = 1 + tau_squared, s_next / s

    def weights(k: int, steps: np.ndarray, newer: int) -> Any:
        """Integrals over `steps` of the basis on k points, the first of them `newer` points after the start."""
        if k == 1:
            return (1 - ratio[steps] ** rate[steps])[:, None]
        lam = -np.log(grid.s[: steps[-1] + 2])
        stop = lam[steps + 1]

        def decay(points):
            return rate[steps][:, None] * np.exp(rate[steps][:, None] * (points - stop[:, None]))

        return lagrange_integrals(history_nodes(lam, steps + newer, k), lam[steps], stop, weight=decay)

    orders = rising_and_falling_orders(n, order)
    predict = assemble(orders, multistep.HISTORY, lambda k, steps: weights(k, steps, 0))
    correct = np.zeros((n, multistep.HISTORY))
    if n > 1:
        # Row i corrects step i - 1: the Adams-Moulton row less the prediction, which has no weight on the new estimate.
        corrector_orders = np.minimum(np.arange(n - 1) + 2, corrector_order)
        moulton = assemble(corrector_orders, multistep.HISTORY, lambda k, steps: weights(k, steps, 1))
        correct[1:] = moulton - np.pad(predict[:-1, :-1], ((0, 0), (1, 0)))
    zeros, ones = np.zeros(n), np.ones(n)
    linear = multistep.Coefficients(grid.s_model[:-1], ones, zeros, ones, zeros, correct, ratio**rate, predict)
    after = s_next * np.sqrt(1 - ratio ** (2 * tau_squared))
    return Rows(np.append(0.0, after[:-1]), np.arange(n), linear)
