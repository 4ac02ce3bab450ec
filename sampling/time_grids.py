"""Where a solver steps: N + 1 decreasing noise scales s = sigma/alpha, float64 NumPy made before anything is compiled.

Grids on s (or lam = -log s) alone are the same for every process; grids in time go through the clock of the process,
`time(s)` and `noise_scale(t)`. All run from s_max, the noise of the prior, to s_min; `with_zero` appends the noise-free
end, so that N intervals to s_min and the step to 0 make N + 1 network calls.

| grid | N + 1 points evenly spaced in |
|---|---|
| `edm` | s^(1/7) (Karras et al. 2022) |
| `logsnr`, `geometric` | log s |
| `time_uniform` | SDE time |
| `time_quadratic` | the square root of SDE time from its end |
| `edm_time` | t^(1/7): what LD3 calls "edm" for VP models, no Karras schedule |
| `ays` | a published list, stretched to the range |
| `dmn` | optimised from the solver's error bound, no network |
| `gits` | chosen by dynamic programming from a teacher's trajectory |
| "20", "4,6,5", "ddim20" | levels of the training ladder (respaced DDPM) |
"""

import re
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from array_types import OtherTable, Table
from sampling.base import TimeGrid
from sampling.coefficients import history_nodes, lagrange_integrals, rising_and_falling_orders


@runtime_checkable
class Clock(Protocol):
    """The part of `sde_lib.GaussianSDE` that a grid in time needs."""

    def time(self, s): ...
    def noise_scale(self, t): ...


# --- even spacing ----------------------------------------------------------------------------------------------------


def edm(n: int, s_max: float, s_min: float, rho: float = 7.0) -> Table:
    """Even in s^(1/rho): rho = 7 of Karras et al. (2022), "Elucidating the design space of diffusion-based models"."""
    return np.linspace(s_max ** (1 / rho), s_min ** (1 / rho), n + 1) ** rho


def logsnr(n: int, s_max: float, s_min: float) -> Table:
    """Even in lam = -log s; the geometric ladder of VE models."""
    return np.exp(np.linspace(np.log(s_max), np.log(s_min), n + 1))


def _in_time(n: int, s_max: float, s_min: float, clock: Clock, power: float) -> Table:
    """t_min + (t_max - t_min) u^power for even u."""
    t_max, t_min = clock.time(s_max), clock.time(s_min)
    return clock.noise_scale(t_min + (t_max - t_min) * np.linspace(1, 0, n + 1) ** power)


def time_uniform(n: int, s_max: float, s_min: float, clock: Clock) -> Table:
    """Even in SDE time."""
    return _in_time(n, s_max, s_min, clock, 1.0)


def time_quadratic(n: int, s_max: float, s_min: float, clock: Clock) -> Table:
    """t_min + (t_max - t_min) u^2 for even u."""
    return _in_time(n, s_max, s_min, clock, 2.0)


def time_cubic(n: int, s_max: float, s_min: float, clock: Clock) -> Table:
    """t_min + (t_max - t_min) u^3 for even u (LD3's "poly_3")."""
    return _in_time(n, s_max, s_min, clock, 3.0)


def edm_time(n: int, s_max: float, s_min: float, clock: Clock, rho: float = 7.0) -> Table:
    """Even in t^(1/rho). The LD3 program names this "edm" on VP models, where it is not the Karras schedule."""
    return clock.noise_scale(edm(n, clock.time(s_max), clock.time(s_min), rho))


def with_zero(s: Table) -> OtherTable:
    """Adds the step from the last noise scale to none at all."""
    return np.append(s, 0.0)


# --- levels of a training ladder -------------------------------------------------------------------------------------


def ddpm_noise_scales(betas: Table) -> Table:
    """The ladder s_k = sqrt(1/abar_k - 1), abar the cumulative product of 1 - betas, ascending."""
    return np.sqrt(np.expm1(-np.cumsum(np.log1p(-betas))))


def respaced_indices(spec: str, levels: int) -> np.ndarray:
    """Which levels of a ladder the published ADM programs keep, ascending.

    Args:
      spec: "20": 20 levels, both ends among them; "4,6,5": so many of each third; "ddim20": every k-th level from 0,
        for the smallest stride k that keeps 20.
      levels: length of the ladder (1000).

    Raises: ValueError if the text is something else or asks for more levels than a section has.
    """
    if re.fullmatch(r"ddim\d+", spec):
        wanted = int(spec[4:])
        strides = [k for k in range(1, levels) if len(range(0, levels, k)) == wanted]
        if not strides:
            raise ValueError(
                f"config.sampling.grid={spec!r}: no integer stride keeps {wanted} of {levels} levels; use {wanted}."
            )
        return np.arange(0, levels, strides[0])
    if not re.fullmatch(r"\d+(,\d+)*", spec):
        raise ValueError(f'config.sampling.grid={spec!r} is no respacing; write "20", "4,6,5" or "ddim20".')
    counts = [int(count) for count in spec.split(",")]
    kept, start = [], 0
    for section, count in enumerate(counts):
        size = levels // len(counts) + (section < levels % len(counts))
        if not 1 <= count <= size:
            raise ValueError(
                f"config.sampling.grid={spec!r}: section {section} has {size} levels, {count} were asked for."
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # The published program adds up the stride and rounds half to even.
        kept += [start + round(position) for position in np.cumsum([0.0] + [stride] * (count - 1)).tolist()]
        start += size
    return np.array(kept)


def respaced(spec: str, ladder: Table) -> OtherTable:
    """The levels kept by `respaced_indices` in decreasing order, then 0: as many network calls as levels.

    ladder: ascending noise scales of the training levels (`ddpm_noise_scales`).
    """
    return with_zero(ladder[respaced_indices(spec, len(ladder))][::-1])


# --- published lists and given values --------------------------------------------------------------------------------

AYS_SIGMAS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}


def ays(n: int, s_max: float, s_min: float, model: str = "sd15") -> Table:
    """Align Your Steps (Sabour et al. 2024): the published ten noise scales, interpolated in log s.

    The lists exist for three large models only. They are stretched in log s to [s_min, s_max]; over their own range and
    with n = 9 they come back as published.
    """
    logs = np.log(AYS_SIGMAS[model])
    stretched = np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(logs)), logs)
    share = (stretched - logs[-1]) / (logs[0] - logs[-1])
    return np.exp(np.log(s_min) + share * np.log(s_max / s_min))


def explicit(s, s_model=None, source: str = "config.sampling.grid") -> TimeGrid:
    """A grid from given values, of which the last may be 0. Raises ValueError unless they decrease and are numbers.

    source: where the values came from, for the message.
    """
    s = np.asarray(s, np.float64)
    s_model = s if s_model is None else np.asarray(s_model, np.float64)
    for values in (s, s_model):
        if values.ndim != 1 or len(values) < 2 or len(values) != len(s):
            raise ValueError(
                f"{source}: a grid is two or more noise scales (as many told to the network), got shape {values.shape}."
            )
        if not (np.isfinite(values).all() and (values[:-1] > 0).all() and values[-1] >= 0):
            raise ValueError(f"{source}: noise scales are positive and only the last may be 0, got {values.tolist()}.")
    if not (np.diff(s) < 0).all():
        raise ValueError(
            f"{source}: noise scales s = sigma/alpha must decrease, got {s.tolist()}; times are not noise scales."
        )
    return TimeGrid(s, s_model)


# --- optimised without a network: DMN --------------------------------------------------------------------------------


def _pixel_error(s: Table) -> Table:
    return s


def solver_error_bound(s: Table, error: Callable[[Table], Table] = _pixel_error, norms: int = 3) -> float:
    """How much errors of the network enter the result of a third-order multistep solver on this grid: DMN's objective.

    Step i adds integral over [lam_i, lam_i+1] of e^lam L_j(lam) dlam times the error of evaluation j, whose size is
    taken to be error(s_j); the first and last steps are of order 1, the second and last but one of order 2, the others
    of order 3. The bound is the sum over evaluations of |their total factor|, but the first `norms` steps enter each on
    its own, by the norm of its factors.
    """
    n, lam = len(s) - 1, -np.log(s)
    factors = np.zeros((n, n))
    orders = rising_and_falling_orders(n, 3)
    for k in np.unique(orders).tolist():
        steps = np.flatnonzero(orders == k)
        integrals = lagrange_integrals(history_nodes(lam, steps, k), lam[steps], lam[steps + 1], weight=np.exp)
        factors[steps[:, None], steps[:, None] - np.arange(k)] = integrals
    factors *= error(s[:-1])[None]
    return np.linalg.norm(factors[:norms], axis=1).sum() + np.abs(factors[norms:].sum(axis=0)).sum()


def dmn(n: int, s_max: float, s_min: float, error: Callable[[Table], Table] = _pixel_error) -> Table:
    """The grid that minimises `solver_error_bound`, found from even steps in log s. No network call; seconds.

    Xue et al. (2024), "Accelerating diffusion sampling with optimized time steps".
    `error` is s for pixels; the published program takes sigma^2/alpha for latents. It also sets norms to 0 beyond seven
    steps; terms of neighbouring steps may then cancel, and what is found depends on the optimiser, so 3 is kept here.
    """
    from scipy import optimize  # a second of every start, otherwise

    length = np.log(s_max / s_min)

    def grid(logits):  # increments of lam as a softmax: positive and of the right sum
        share = np.exp(logits - logits.max())
        return s_max * np.exp(-length * np.append(0.0, np.cumsum(share / share.sum())))

    return grid(optimize.minimize(lambda logits: solver_error_bound(grid(logits), error), np.zeros(n), method="BFGS").x)


# --- chosen from a teacher's trajectory: GITS ------------------------------------------------------------------------


def euler_jump_costs(states: np.ndarray, x0: np.ndarray, s: Table) -> np.ndarray:
    """cost[i, j]: how far one Euler jump from teacher state i to scale j lands from teacher state j, mean over images.

    Args:
      states: y at each of m noise scales, [m, b, ...]; x0: the network's estimates there, [m or m - 1, b, ...].
      s: the decreasing noise scales, [m].

    Returns: [m, m], infinite unless j > i.
    """
    m = len(s)
    costs = np.full((m, m), np.inf)
    for i in range(m - 1):
        slope = (states[i] - x0[i]) / s[i]
        for j in range(i + 1, m):
            miss = states[i] + (s[j] - s[i]) * slope - states[j]
            costs[i, j] = np.sqrt((miss.reshape(len(miss), -1) ** 2).sum(axis=1)).mean()
    return costs


def cheapest_path(costs: np.ndarray, n: int, growth: float = 1.15) -> np.ndarray:
    """The n jumps from the first point to the last with the least cost, by dynamic programming.

    The cost of a path is that of its first jump plus `growth` times the cost of the rest. costs: [m, m], infinite where
    no jump is allowed. Returns n + 1 indices. Raises ValueError if m points allow no n jumps.
    """
    m = len(costs)
    if not 1 <= n < m:
        raise ValueError(
            f"A trajectory of {m} points has no path of {n} steps; lower --steps or give the teacher more steps."
        )
    rest, choices = costs[:, -1], []
    for _ in range(n - 1):
        totals = costs + growth * rest[None]
        choices.append(totals.argmin(axis=1))
        rest = totals.min(axis=1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return np.array([*path, m - 1])


def gits(states: np.ndarray, x0: np.ndarray, s: Table, n: int, growth: float = 1.15) -> OtherTable:
    """The n-step grid, among the teacher's noise scales, whose Euler jumps stay closest to the teacher.

    Chen et al. (2024), "On the trajectory regularity of ODE-based diffusion sampling" (GITS). Arguments as in
    `euler_jump_costs` and `cheapest_path`; about 60 teacher steps of a few hundred images.
    """
    return s[cheapest_path(euler_jump_costs(states, x0, s), n, growth)]


# --- by name ---------------------------------------------------------------------------------------------------------

NOISE_GRIDS: dict[str, Callable[..., Table]] = {
    "edm": edm,
    "logsnr": logsnr,
    "geometric": logsnr,
    "ays": ays,
    "dmn": dmn,
}
CLOCK_GRIDS: dict[str, Callable[..., Table]] = {
    "time_uniform": time_uniform,
    "time_quadratic": time_quadratic,
    "time_cubic": time_cubic,
    "edm_time": edm_time,
}


def make(name: str, num_steps: int, s_max: float, s_min: float, clock: Clock | None, to_zero: bool = True) -> TimeGrid:
    """The named grid for exactly `num_steps` network calls.

    Args:
      name: a key of `NOISE_GRIDS` or `CLOCK_GRIDS` (`config.sampling.grid`).
      s_max, s_min: noise scales of the prior and of the last network call (`to_zero`) or of the result (otherwise).
      clock: the process, for grids in time; None where the grid is another.
      to_zero: the last step ends at s = 0. A single step then goes there directly.

    Raises: ValueError for an unknown name, fewer than one step or an empty range.
    """
    if name not in NOISE_GRIDS and name not in CLOCK_GRIDS:
        raise ValueError(
            f"config.sampling.grid={name!r} is unknown; choose one of {sorted([*NOISE_GRIDS, *CLOCK_GRIDS])}, "
            'or levels of the training ladder such as "20" or "ddim20".'
        )
    if num_steps < 1:
        raise ValueError(f"--steps={num_steps}: a sampler takes at least one step.")
    if not 0 < s_min < s_max:
        raise ValueError(f"A grid runs from s_max down to s_min > 0, got {s_max} and {s_min}; check config.sde.")
    if to_zero and num_steps == 1:
        return explicit([s_max, 0.0])
    intervals = num_steps - to_zero
    if name in NOISE_GRIDS:
        s = NOISE_GRIDS[name](intervals, s_max, s_min)
    else:
        s = CLOCK_GRIDS[name](intervals, s_max, s_min, clock)
    return explicit(with_zero(s) if to_zero else s)
