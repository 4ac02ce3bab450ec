"""The probability flow by embedded Runge-Kutta methods that choose their own steps, from noise to image and back.

In y = x/alpha and lam = -log s the flow of every process is dy/dlam = D(y, s) - y, D the denoiser. Each image has steps
of its own, so that it does not depend on the images it is drawn with; those that are ahead wait. The solvers
are explicit pairs whose last stage is the first of the next step, and at the end of the flow that stage is the denoiser
there: the last, denoising jump to s = 0 costs nothing.

Network calls are counted as they happen, 1 + (stages - 1) for each attempted step, the rejected ones among them. The
same step run with lam decreasing maps an image to its latent; both directions invert one another up to the tolerance.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Keys, PerImage
from sampling import denoising
from sampling.base import Sampler
from sampling.denoising import Denoiser

SEGMENTS = 20  # rows of the loop: where progress is shown and states are recorded; no step ends there on purpose
MOST_ATTEMPTS = 2000  # a segment; more means that the network is not a function of its input, or not finite


class Tableau(NamedTuple):
    """An explicit embedded pair of orders `order` and `order` - 1 whose last stage is evaluated at the new state.

    Stage i stands at lam + nodes[i] h, at y + h sum_j stages[i][j] k_j; the new state is that of the last stage, and
    sum_j error[j] k_j h its distance from that of lower order.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    order: int

    @property
    def calls(self) -> int:
        """Network calls of an attempted step: the first stage is known."""
        return len(self.nodes) - 1


# Bogacki and Shampine (1989), "A 3(2) pair of Runge-Kutta formulas".
BOSH3 = Tableau(
    nodes=(0, 1 / 2, 3 / 4, 1),
    stages=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    order=3,
)
# Dormand and Prince (1980), "A family of embedded Runge-Kutta formulae": RK45 of SciPy and of the published samplers.
DOPRI5 = Tableau(
    nodes=(0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    stages=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    error=(71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    order=5,
)
SOLVERS = {"dopri5": DOPRI5, "bosh3": BOSH3}


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Settings: the pair, and the error a step may make in each pixel, atol + rtol |y|."""

    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise ValueError(f"config.sampling.ode.solver={self.solver!r} is unknown; choose one of {sorted(SOLVERS)}.")
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise ValueError(
                f"config.sampling.ode.rtol={self.rtol:g} and atol={self.atol:g} must not be negative and not both 0."
            )


class Rows(NamedTuple):
    """One segment of the flow a row, [n]."""

    until: Any  # lam that every image has to pass before the next row
    end: Any  # lam where the flow ends; no step goes beyond it


class State(NamedTuple):
    """Where each image stands."""

    y: Image
    slope: Image  # dy/dlam there
    lam: PerImage
    step: PerImage  # length of the next attempt
    calls: Any  # network calls so far, int32 [b]
    rejected: Any  # bool [b]: the last attempt was refused, so that the next may not grow


def slope(denoiser: Denoiser, y: Image, lam: PerImage) -> Image:
    """dy/dlam = D(y, s) - y of the flow, s = exp(-lam) of each image. 1 NFE."""
    return denoiser(y, jnp.exp(-lam)).astype(y.dtype) - y


def rk_step(
    tableau: Tableau, denoiser: Denoiser, y: Image, first: Image, lam: PerImage, h: PerImage
) -> tuple[Image, Image, Image]:
    """One step of signed length h [b] from (lam, y) with slope `first` there; `tableau.calls` NFE.

    Returns the new state of order `tableau.order`, the slope there, and the estimated error, [b, h, w, c] each.
    """
    wide = h[:, None, None, None]

    def combine(weights: tuple[float, ...], slopes: list[Image]) -> Image:
        return wide * sum(weight * k for weight, k in zip(weights, slopes, strict=True) if weight)

    slopes, new = [first], y
    for node, weights in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
        new = y + combine(weights, slopes)
        slopes.append(slope(denoiser, new, lam + node * h))
    return new, slopes[-1], combine(tableau.error, slopes)


def _rms(x: Image) -> PerImage:
    return jnp.sqrt(jnp.mean(x**2, axis=(1, 2, 3)))


def _first_step(settings: Adaptive, y: Image, k: Image) -> PerImage:
    """A hundredth of the time in which y changes by itself (Hairer, Norsett and Wanner, "Solving ordinary differential
    equations I", II.4); the controller lengthens it."""
    scale = settings.atol + settings.rtol * jnp.abs(y)
    return 0.01 * jnp.maximum(_rms(y / scale), 1e-5) / jnp.maximum(_rms(k / scale), 1e-5)


@dataclasses.dataclass(frozen=True)
class Step:
    """`sampling.base.Step` of one segment: attempts until every image has passed `row.until`."""

    settings: Adaptive

    def __call__(self, denoiser: Denoiser, state: State, row: Rows) -> tuple[State, tuple]:
        settings, tableau = self.settings, SOLVERS[self.settings.solver]

        def begin(state: State) -> State:
            k = slope(denoiser, state.y, state.lam)
            return state._replace(slope=k, step=_first_step(settings, state.y, k), calls=state.calls + 1)

        state = jax.lax.cond(jnp.any(state.calls == 0), begin, lambda state: state, state)

        def waits(state: State) -> Any:
            return jnp.abs(row.end - state.lam) <= jnp.abs(row.end - row.until)

        def attempt(carry: tuple[State, Any]) -> tuple[State, Any]:
            state, count = carry
            active = ~waits(state)
            left = row.end - state.lam
            last = jnp.abs(left) <= state.step
            h = jnp.where(last, left, jnp.sign(left) * state.step)
            new, k, error = rk_step(tableau, denoiser, state.y, state.slope, state.lam, h)
            size = _rms(error / (settings.atol + settings.rtol * jnp.maximum(jnp.abs(state.y), jnp.abs(new))))
            size = jnp.where(jnp.isfinite(size), size, jnp.inf)
            accepted = active & (size <= 1)
            growth = 0.9 * jnp.maximum(size, 1e-10) ** (-1 / tableau.order)
            growth = jnp.clip(growth, 0.2, jnp.where(state.rejected, 1.0, 10.0))
            lam = jnp.where(last, row.end, state.lam + h)  # lam + left may miss the end by a rounding
            moved = accepted[:, None, None, None]
            return State(
                y=jnp.where(moved, new, state.y),
                slope=jnp.where(moved, k, state.slope),
                lam=jnp.where(accepted, lam, state.lam),
                # A step cut short at the end says little about the next, but there is none.
                step=jnp.where(active, jnp.abs(h) * growth, state.step),
                calls=state.calls + tableau.calls * active.astype(jnp.int32),
                rejected=jnp.where(active, ~accepted, state.rejected),
            ), count + 1

        def unfinished(carry: tuple[State, Any]) -> Any:
            return ~jnp.all(waits(carry[0])) & (carry[1] < MOST_ATTEMPTS)

        return jax.lax.while_loop(unfinished, attempt, (state, jnp.zeros((), jnp.int32)))[0], ()


@dataclasses.dataclass(frozen=True)
class Recording:
    """`Step`, recording each image's state and its estimate D(y, s) = y + dy/dlam."""

    step: Step

    def __call__(self, denoiser: Denoiser, state: State, row: Rows) -> tuple[State, tuple[Image, Image]]:
        state, _ = self.step(denoiser, state, row)
        return state, (state.y, state.y + state.slope)


def rows(s_start: float, s_end: float) -> Rows:
    """The segments of the flow from noise scale s_start to s_end, both positive, in either direction."""
    if not (s_start > 0 and s_end > 0 and s_start != s_end):
        raise ValueError(f"The flow runs between two different positive noise scales, got {s_start} and {s_end}.")
    lam = -np.linspace(np.log(s_start), np.log(s_end), SEGMENTS + 1)
    return Rows(lam[1:], np.full(SEGMENTS, lam[-1]))


def init(y: Image, s_start: float) -> State:
    """The state before the first call, at noise scale s_start."""
    b = y.shape[0]
    lam = jnp.full(b, -np.log(s_start), y.dtype)
    return State(y, jnp.zeros_like(y), lam, jnp.zeros_like(lam), jnp.zeros(b, jnp.int32), jnp.zeros(b, bool))


def _at_end(state: State, s_end: float, image: Image) -> Image:
    """`image`, or NaN where the flow got stuck, for whoever takes the images to notice."""
    arrived = jnp.abs(state.lam + np.log(s_end)) <= 1e-4
    return jnp.where(arrived[:, None, None, None], image, jnp.nan)


def create(
    settings: Adaptive,
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    s_start: float,
    s_end: float,
    prior_scale: float,
    denoise: bool = True,
    record: bool = False,
) -> Sampler:
    """The sampler for images of `shape` (h, w, c): the flow from s_start to s_end > 0 and, if asked, to D(y, s_end).

    The start noise of an image is normal(its key) in float32, times prior_scale. Its count of network calls is known
    when it is done: `Sampler.calls`. An image that the solver cannot bring to the end is NaN.
    """

    def begin(keys: Keys) -> tuple[Denoiser, State]:
        return denoiser, init(prior_scale * denoising.start_noise(keys, shape), s_start)

    def image(state: State) -> Image:
        return _at_end(state, s_end, state.y + state.slope if denoise else state.y)

    step = Step(settings)
    return Sampler(
        Recording(step) if record else step,
        rows(s_start, s_end),
        begin,
        image,
        nfe=0,
        calls=lambda state: state.calls,
    )


def transport(settings: Adaptive, denoiser: Denoiser, y: Image, s_start: float, s_end: float) -> tuple[Image, Any]:
    """The flow's map of y [b, h, w, c] from s_start to s_end, up or down, and the calls of each image, int32 [b].

    From the last noise scale up to the first it maps an image to its latent y, down it maps it back. Traceable.
    """
    step, start = Step(settings), init(y, s_start)
    table = jax.tree.map(lambda leaf: jnp.asarray(leaf, y.dtype), rows(s_start, s_end))
    state, _ = jax.lax.scan(lambda state, row: step(denoiser, state, row), start, table)
    return _at_end(state, s_end, state.y), state.calls
