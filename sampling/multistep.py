"""One engine for every deterministic multistep solver: grid -> table of coefficients -> one step function.

In y = x/alpha and s = sigma/alpha the probability-flow ODE of every process is dy/ds = (y - denoise(y, s))/s, with
lam = -log s. The solvers below differ only in how they extrapolate what the network said before, which is linear, so
each is a function from the grid to a table of `Coefficients`; `step` applies one row and calls the network exactly
once. All tables have the same shape, so one compiled program runs every solver. NFE = number of steps, always.

| solver | interpolates | in | integrated |
|---|---|---|---|
| `ddim` | x0, constant | - | exactly |
| `ipndm` (PLMS) | eps | step count: classical Adams-Bashforth weights | as if the steps in s were equal |
| `ipndm_v` | eps | s | exactly |
| `deis` (tAB) | eps | time of the linear VP process | exactly |
| `ghvb` | eps smoothed by momentum | step count | as if the steps in s were equal |
| `dpmpp` (2M, 3M) | x0 | lam, finite differences | to the order |
| `unipc` | x0 | lam | to the order, then corrected with the next call |

Tables are float64 NumPy for a NumPy grid, made once before the loop. For a grid of JAX arrays the same formulas are
differentiable with respect to both rows of the grid; that is how time grids are learned. The last s may be exactly 0.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image
from sampling import denoising
from sampling.base import Sampler, TimeGrid
from sampling.coefficients import (
    Array,
    array_module,
    assemble,
    history_nodes,
    lagrange_integrals,
    phi,
    rising_and_falling_orders,
    rising_orders,
)
from sampling.denoising import Denoiser
from sde_lib import VPSDE

HISTORY = 4  # values kept, in every table: enough for order 4 and for UniPC-3's corrector


class Coefficients(NamedTuple):
    """One row a step from s[n] to s[n+1]. With x0 = denoise(input_scale y, s_model) the step is

    newest = from_y input_scale y + from_x0 x0 + from_newest history[0],    pushed in front of the history,
    y <- scale (y + correct . history) + predict . history.
    """

    s_model: Array  # [n] what the network is told
    input_scale: Array  # [n] 1 unless network times are learned apart
    from_y: Array  # [n] the history holds x0 with (0, 1, 0), eps with (1/s, -1/s, 0)
    from_x0: Array  # [n]
    from_newest: Array  # [n] momentum
    correct: Array  # [n, HISTORY] improves the step before with the call of this one; 0 without a corrector
    scale: Array  # [n]
    predict: Array  # [n, HISTORY] newest first


class State(NamedTuple):
    """`y` stands at the next grid point; the rest is memory."""

    y: Image
    history: Any  # [HISTORY, b, h, w, c], newest first; rows of zero weight until it is filled
    x0: Image  # the last estimate


def init(y: Image) -> State:
    """The state before the first step. y: x/alpha at s[0], [b, h, w, c]; noise of standard deviation near s[0]."""
    return State(y, jnp.zeros((HISTORY, *y.shape), y.dtype), jnp.zeros_like(y))


def combine(weights: Array, history: Array) -> Image:
    """sum_j weights[j] history[j], elementwise: a matmul would be rounded to TF32 or bfloat16 on accelerators."""
    return jnp.sum(weights.reshape(-1, *[1] * (history.ndim - 1)) * history, axis=0)


def step(denoiser: Denoiser, state: State, row: Coefficients) -> tuple[State, tuple]:
    """Applies one row of a table (see `Coefficients`). 1 NFE. A `sampling.base.Step` without a record."""
    y_model = jnp.asarray(row.input_scale) * state.y
    x0 = denoiser(y_model, jnp.asarray(row.s_model)).astype(state.y.dtype)
    newest = row.from_y * y_model + row.from_x0 * x0 + row.from_newest * state.history[0]
    history = jnp.concatenate([newest[None], state.history[:-1]])
    corrected = state.y + combine(row.correct, history)
    return State(jnp.asarray(row.scale) * corrected + combine(row.predict, history), history, x0), ()


def _x0_table(grid: TimeGrid, scale: Array, predict: Array, correct: Array | None = None) -> Coefficients:
    """A solver whose history holds x0 estimates."""
    xp, n = array_module(grid.s), grid.num_steps
    zeros, ones = xp.zeros(n), xp.ones(n)
    correct = xp.zeros((n, HISTORY)) if correct is None else correct
    return Coefficients(grid.s_model[:-1], ones, zeros, ones, zeros, correct, scale, predict)


def _eps_table(grid: TimeGrid, slope: Array, gain: Array | None = None) -> Coefficients:
    """A solver y <- y + (s' - s) slope . history on noise estimates eps = (y - x0)/s_model.

    `gain` < 1 smooths them first: v <- (1 - gain) v + gain eps.
    """
    xp, n = array_module(grid.s), grid.num_steps
    gain = xp.ones(n) if gain is None else gain
    from_y = gain / grid.s_model[:-1]
    predict = (grid.s[1:] - grid.s[:-1])[:, None] * slope
    return Coefficients(
        grid.s_model[:-1], xp.ones(n), from_y, -from_y, 1 - gain, xp.zeros((n, HISTORY)), xp.ones(n), predict
    )


def _check_order(solver: str, order: float, orders: str, supported: bool, num_steps: int) -> None:
    if not supported:
        raise ValueError(f"{solver} has order {orders}, not {order}; set config.sampling.order.")
    if math.ceil(order) > num_steps:
        raise ValueError(
            f"{solver} of order {order} needs at least {math.ceil(order)} steps, got {num_steps}; "
            "raise --steps or take a lower order (config.sampling.order, or plms1 for plms4)."
        )


def _pad(rows: Array) -> Array:
    return array_module(rows).pad(rows, ((0, 0), (0, HISTORY - rows.shape[1])))


def ddim(grid: TimeGrid) -> Coefficients:
    """y' = (s'/s) y + (1 - s'/s) x0: Euler's method in s, exact for a constant x0. Order 1.

    Song, Meng and Ermon (2021), "Denoising diffusion implicit models", with eta = 0. `euler` (`ipndm` of order 1) takes
    the same step, for every process; they differ only if s_model does, as one trusts x0 and the other eps.
    """
    ratio = grid.s[1:] / grid.s[:-1]
    return _x0_table(grid, ratio, _pad((1 - ratio)[:, None]))


ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(grid: TimeGrid, order: int = 4) -> Coefficients:
    """y' = y + (s' - s) sum_j w_j eps_{n-j} with Adams-Bashforth weights for equal steps, on any grid. Orders 1-4.

    The mixing rule of PLMS (Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds") without its
    extra first calls: orders 1, 2, ... warm up. Second order in s on a smoothly graded grid, whatever `order` says; few
    steps on the EDM grid nevertheless look better with these weights than with the exact ones of `ipndm_v`.
    """
    _check_order("ipndm (plms)", order, "1, 2, 3 or 4", order in ADAMS_BASHFORTH, grid.num_steps)
    xp = array_module(grid.s)

    def weights(k, steps):
        return xp.tile(xp.asarray(ADAMS_BASHFORTH[k])[None], (len(steps), 1))

    return _eps_table(grid, assemble(rising_orders(grid.num_steps, order), HISTORY, weights))


def ipndm_v(grid: TimeGrid, order: int = 4) -> Coefficients:
    """Adams-Bashforth with weights of the actual steps: integrals over [s, s'] of the Lagrange basis. Orders 1-4."""
    return _adams_bashforth("ipndm_v", grid, order, lambda s: s)


_VP_TIME = VPSDE().time


def deis(grid: TimeGrid, order: int = 4, time: Callable[[Array], Array] = _VP_TIME) -> Coefficients:
    """DEIS-tAB: eps interpolated by a polynomial in SDE time, integrated over s. Orders 1-4.

    Zhang and Chen (2023), "Fast sampling of diffusion models with exponential integrator". `time` maps s to the time
    of interpolation; by default that of the linear VP process, for every model, as in the published comparisons. (In
    `order` evaluations: DEIS-tAB3 of the paper, a polynomial of degree 3, is order 4 here.)
    """
    return _adams_bashforth("deis", grid, order, time)


def _adams_bashforth(solver: str, grid: TimeGrid, order: int, variable: Callable[[Array], Array]) -> Coefficients:
    _check_order(solver, order, "1, 2, 3 or 4", order in (1, 2, 3, 4), grid.num_steps)

    def weights(k, steps):
        start, stop = grid.s[steps], grid.s[steps + 1]
        nodes = variable(history_nodes(grid.s, steps, k))
        return lagrange_integrals(nodes, start, stop, variable=variable) / (stop - start)[:, None]

    return _eps_table(grid, assemble(rising_orders(grid.num_steps, order), HISTORY, weights))


def ghvb(grid: TimeGrid, order: float = 3.5) -> Coefficients:
    """Generalised heavy-ball momentum on top of Adams-Bashforth: v <- (1-b) v + b eps, slope = weights(b) . v / b.

    Wizadwongsa and Suwajanakorn (2024), "Diffusion sampling with momentum for mitigating divergence artifacts". `order`
    in (0, 4] is k - 1 + b with k = ceil(order): 4 is `ipndm` of order 4; smaller b trades accuracy for stability.
    """
    _check_order("ghvb", order, "in (0, 4]", 0 < order <= 4, grid.num_steps)
    highest = math.ceil(order)
    b = order - (highest - 1)
    mix = {
        1: (b,),
        2: ((2 + b) / 2, -(2 - b) / 2),
        3: ((18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12),
        4: ((46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24),
    }
    xp = array_module(grid.s)

    def weights(k, steps):
        return xp.tile(xp.asarray(mix[k])[None] / b, (len(steps), 1))

    # The velocity starts at the first eps.
    gain = xp.asarray(np.where(np.arange(grid.num_steps) == 0, 1.0, b))
    return _eps_table(grid, assemble(rising_orders(grid.num_steps, highest), HISTORY, weights), gain)


def dpmpp(grid: TimeGrid, order: int = 3) -> Coefficients:
    """DPM-Solver++ multistep (1: DDIM, 2M, 3M): x0 expanded in lam by finite differences. Orders 1-3.

    Lu et al. (2022), "DPM-Solver++: Fast solver for guided sampling of diffusion probabilistic models", and the
    third-order form of its published program. With h = lam' - lam, D_0 = x0_n, and D_1, D_2 the differences that stand
    for h x0' and h^2 x0''/2: y' = (s'/s) y + h phi_1 D_0 + h phi_2 D_1 + h phi_3 D_2 at -h, where 2M replaces h phi_2
    by h phi_1/2. Expanding x0 to second order asks for 2 h phi_3 D_2; published figures were made with h phi_3 D_2, so
    it is kept: 3M is of order 2 like 2M, with a smaller error. The order falls to 1 at the last step.
    """
    _check_order("dpmpp", order, "1, 2 or 3", order in (1, 2, 3), grid.num_steps)
    xp = array_module(grid.s)

    def weights(k, steps):
        drop = 1 - grid.s[steps + 1] / grid.s[steps]  # h phi_1(-h)
        if k == 1:
            return drop[:, None]
        lam = -xp.log(grid.s[: steps[-1] + 2])
        h = lam[steps + 1] - lam[steps]
        r0 = (lam[steps] - lam[steps - 1]) / h
        if k == 2:
            return xp.stack([drop + drop / (2 * r0), -drop / (2 * r0)], axis=1)
        r1 = (lam[steps - 1] - lam[steps - 2]) / h
        # Divided differences d0, d1 as rows on (x0_n, x0_{n-1}, x0_{n-2}).
        none = xp.zeros_like(h)
        d0 = xp.stack([1 / r0, -1 / r0, none], axis=1)
        d1 = xp.stack([none, 1 / r1, -1 / r1], axis=1)
        first = d0 + (r0 / (r0 + r1))[:, None] * (d0 - d1)
        second = (d0 - d1) / (r0 + r1)[:, None]
        constant = xp.stack([drop, none, none], axis=1)
        return constant + (h * phi(2, -h))[:, None] * first + (h * phi(3, -h))[:, None] * second

    orders = rising_and_falling_orders(grid.num_steps, order)
    return _x0_table(grid, grid.s[1:] / grid.s[:-1], assemble(orders, HISTORY, weights))


def unipc(grid: TimeGrid, order: int = 3, variant: str = "bh2", published_gradient: bool = False) -> Coefficients:
    """UniPC on x0 (Zhao et al. 2023, "UniPC: A unified predictor-corrector framework"). Orders 1-3.

    UniP-k predicts the next point; UniC-k corrects it with the network call that the next step makes there anyway, so
    N steps cost N calls; the last point is not corrected. `variant` is B(h): h for "bh1", e^h - 1 for "bh2". The order
    falls to 1 at the last step.

    `published_gradient` leaves the matrix of the order conditions out of gradients with respect to the grid, as the
    published LD3 program does by accident; it changes no value.
    """
    _check_order("unipc", order, "1, 2 or 3", order in (1, 2, 3), grid.num_steps)
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"unipc has variants bh1 and bh2, not {variant!r}; set config.sampling.variant.")
    n = grid.num_steps
    orders = rising_and_falling_orders(n, order)
    ratio = grid.s[1:] / grid.s[:-1]
    conditions = (grid.s, variant, published_gradient)
    predict = assemble(orders, HISTORY, functools.partial(_unipc_predictor, *conditions))
    # Row n corrects step n - 1; its history holds one value more.
    corrections = assemble(orders[:-1], HISTORY, functools.partial(_unipc_correction, *conditions)) if n > 1 else None
    xp = array_module(grid.s)
    first = xp.zeros((1, HISTORY))
    correct = first if corrections is None else xp.concatenate([first, corrections])
    return _x0_table(grid, ratio, predict, correct)


class _UniPCWeights(NamedTuple):
    base: Array  # [m] B(h)
    rho: Array  # [m, k - 1] earlier points, in units of the step; negative
    predictor: Array  # [m, k - 1] on the differences to earlier points
    corrector: Array  # [m, k] the same, and last on the difference to the new point


def _unipc_weights(s: Array, variant: str, frozen: bool, k: int, steps: np.ndarray) -> _UniPCWeights:
    """Solves the order conditions sum_j rho_j^(i-1) w_j = i! h phi_{i+1}(h)/B(h), i = 1 .. k, with h = lam - lam'."""
    xp = array_module(s)
    lam = -xp.log(s[: steps[-1] + 2])
    start = lam[steps]
    h = start - lam[steps + 1]
    base = h if variant == "bh1" else xp.expm1(h)
    rho = (history_nodes(lam, steps, k)[:, 1:] - start[:, None]) / -h[:, None]
    nodes = xp.concatenate([rho, xp.ones((len(steps), 1))], axis=1)
    powers = xp.stack([nodes**i for i in range(k)], axis=1)
    powers = jax.lax.stop_gradient(powers) if frozen else powers
    moments = xp.stack([math.factorial(i) * h * phi(i + 1, h) / base for i in range(1, k + 1)], axis=1)

    def solve(size):
        return xp.linalg.solve(powers[:, :size, :size], moments[:, :size, None])[..., 0]

    # Order 2 predicts and order 1 corrects with 1/2 instead of solving: the published choice, of the same order.
    half = xp.full((len(steps), 1), 0.5)
    predictor = half if k == 2 else solve(k - 1) if k > 2 else half[:, :0]
    return _UniPCWeights(base, rho, predictor, half if k == 1 else solve(k))


def _on_values(weights: Array, rho: Array) -> Array:
    """sum_j w_j (x0_j - x0_n)/rho_j as a row on (x0_n, x0_1, x0_2, ...)."""
    xp = array_module(weights)
    return xp.concatenate([-xp.sum(weights / rho, axis=1, keepdims=True), weights / rho], axis=1)


def _unipc_predictor(s: Array, variant: str, frozen: bool, k: int, steps: np.ndarray) -> Array:
    xp = array_module(s)
    row = (1 - s[steps + 1] / s[steps])[:, None]
    if k == 1:
        return row
    w = _unipc_weights(s, variant, frozen, k, steps)
    return xp.pad(row, ((0, 0), (0, k - 1))) - w.base[:, None] * _on_values(w.predictor, w.rho)


def _unipc_correction(s: Array, variant: str, frozen: bool, k: int, steps: np.ndarray) -> Array:
    """What the corrector changes about the prediction: a row on the new x0, then on the history it was made from."""
    xp = array_module(s)
    w = _unipc_weights(s, variant, frozen, k, steps)
    new = w.corrector[:, -1:]
    old = _on_values(w.corrector[:, :-1] - w.predictor, w.rho)
    old = xp.concatenate([old[:, :1] - new, old[:, 1:]], axis=1)
    return -w.base[:, None] * xp.concatenate([new, old], axis=1)


SOLVERS: dict[str, Callable[..., Coefficients]] = {
    "ddim": ddim,
    "euler": functools.partial(ipndm, order=1),
    "ipndm": ipndm,
    "ipndm_v": ipndm_v,
    "deis": deis,
    "ghvb": ghvb,
    "dpmpp": dpmpp,
    "dpm_solver++": dpmpp,
    "unipc": unipc,
    "uni_pc": unipc,
    **{f"{name}{order}": functools.partial(ipndm, order=order) for name in ("plms", "pndm") for order in (1, 2, 3, 4)},
}


def table(solver: str, grid: TimeGrid, input_scale: Array | None = None, **settings) -> Coefficients:
    """The coefficients of the solver of this name on this grid.

    Args:
      solver: a key of `SOLVERS` (`config.sampling.method`).
      grid: N + 1 noise scales; N rows.
      input_scale: alpha(s)/alpha(s_model) at s[:-1], for a network whose times are learned apart and which is fed
        x = alpha(s) y unchanged, as LD3 trains VP models. 1 for VE and whenever s_model = s.
      settings: `order`, `variant`, `time`; each solver knows its own.

    Raises: ValueError for an unknown solver, an order it does not have, or fewer steps than its order.
    """
    if solver not in SOLVERS:
        raise ValueError(f"config.sampling.method={solver!r} is no multistep solver; choose one of {sorted(SOLVERS)}.")
    rows = SOLVERS[solver](grid, **settings)
    return rows if input_scale is None else rows._replace(input_scale=input_scale)


def create(
    rows: Coefficients, denoiser: Denoiser, shape: tuple[int, int, int], prior_scale: float, record: bool = False
) -> Sampler:
    """The sampler of a table, for images of `shape` (h, w, c); N NFE. See `denoising.create`."""
    return denoising.create(step, init, lambda keys: denoiser, rows, len(rows.scale), shape, prior_scale, record)
