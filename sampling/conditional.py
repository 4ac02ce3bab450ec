"""The conditional half of operator splitting: solvers of dy/ds = -w(s) s grad log p(condition | y), one kick at a time.

A kick goes from s to s_next <= s. Its row is made on the host, so that the schedule and its interval cost nothing: a
kick of zero weight is left out of the run. Long kicks are divided into shorter ones (sub-cycling).

| solver | kick | order | gradients |
|---|---|---|---|
| `euler` | the gradient at s | 1 | 1 |
| `heun` | the mean of the slopes at both ends; Euler into s = 0 | 2 | 2 |
| `flow` | the guidance's own `flow`: exact for linear-Gaussian guidance | exact | 1 flow |

Euler is stable while (s - s_next) s w kappa < 2, kappa the largest eigenvalue of -Hessian log p: guidance is stiff
where it knows much, near s = 0. `flow` is stable for any kick.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Scalar, Table
from sampling.guidance import Guidance, Schedule

MOST_SUBSTEPS = 64  # of one kick, when they are chosen automatically

Curvature = Callable[[Table], Any]  # noise scales [n] -> largest eigenvalue of -Hessian log p there [n], float64


class Kicks(NamedTuple):
    """One kick a row, [m]. With y_in = input_scale y, Euler's is y + gain grad log p(y_in, s)."""

    s: Any
    s_next: Any
    input_scale: Any  # 1 but for a quirk of the published program
    gain: Any  # (s - s_next) s w(s)
    gain_next: Any  # (s - s_next) s_next w(s_next), for Heun
    weight: Any  # w in the middle, for flow
    length: Any  # s - s_next


def kicks(nodes: Table, schedule: Schedule) -> Kicks:
    """The kicks between neighbouring noise scales `nodes`, decreasing, [m + 1]."""
    s, s_next = np.asarray(nodes[:-1], np.float64), np.asarray(nodes[1:], np.float64)
    length = s - s_next
    return Kicks(
        s,
        s_next,
        np.ones_like(s),
        length * s * schedule(s),
        length * s_next * schedule(s_next),
        schedule((s + s_next) / 2),
        length,
    )


def euler(guidance: Guidance, y: Image, kick: Kicks) -> Image:
    """The change of y by Euler's method; weight and gradient at the start of the kick. Order 1, 1 gradient."""
    return kick.gain * guidance(kick.input_scale * y, kick.s)


def heun(guidance: Guidance, y: Image, kick: Kicks) -> Image:
    """The change of y by the trapezoidal rule with Euler as its predictor. Order 2, 2 gradients; 1 into s = 0."""

    def slope(gain: Scalar, y: Image, s: Scalar) -> Image:
        change = jax.eval_shape(guidance, y, s)
        none = jnp.zeros(change.shape, change.dtype)
        return jax.lax.cond(gain != 0, lambda: gain.astype(change.dtype) * guidance(y, s), lambda: none)

    first = slope(kick.gain, y, kick.s)
    second = slope(kick.gain_next, y + first, kick.s_next)
    return jnp.where(kick.s_next > 0, (first + second) / 2, first)


def flow(guidance: Any, y: Image, kick: Kicks) -> Image:
    """The change of y by the guidance's own map from s to s_next."""
    return guidance.flow(y, kick.s, kick.s_next, kick.weight) - y


SOLVERS: dict[str, Callable[[Any, Image, Kicks], Image]] = {"euler": euler, "heun": heun, "flow": flow}


def evaluations(solver: str, kicks: Kicks) -> np.ndarray:
    """Gradients (or flows) that each kick takes, [m]; a kick of none is left out of the run."""
    if solver == "flow":
        return (kicks.weight != 0).astype(int)
    if solver == "euler":
        return (kicks.gain != 0).astype(int)
    return (kicks.gain != 0).astype(int) + (kicks.gain_next != 0)


def stiffness(kicks: Kicks, curvature: Curvature) -> Table:
    """(s - s_next) s w(s) kappa(s) of each Euler kick, [m]: it must stay below 2."""
    return np.asarray(kicks.gain * curvature(kicks.s))


def subdivide(s: float, s_next: float, schedule: Schedule, curvature: Curvature | None, substeps: int) -> Table:
    """The nodes of one kick: `substeps` equal parts, or for 0 as many as keep Euler's method monotone.

    Automatic parts are as long as stiffness 1 allows, so no part overshoots; after `MOST_SUBSTEPS` the rest is one.
    """
    if substeps:
        return np.linspace(s, s_next, substeps + 1)
    assert curvature is not None  # checked where the settings are
    nodes = [s]
    while nodes[-1] > s_next and len(nodes) <= MOST_SUBSTEPS:
        here = np.array(nodes[-1:])
        rate = float((here * schedule(here) * np.asarray(curvature(here)))[0])
        last = rate * (nodes[-1] - s_next) <= 1 or len(nodes) == MOST_SUBSTEPS
        nodes.append(s_next if last else nodes[-1] - 1 / rate)
    return np.array(nodes)


def power_iteration(guidance: Guidance, y: Image, s: Scalar, key: jax.Array, iterations: int = 8) -> Scalar:
    """The largest eigenvalue (in size) of the Hessian of log p at (y, s), of any guidance, largest over the batch.

    Takes `iterations` Hessian-vector products; a lower bound that is close after a few.
    """

    def iterate(_, v_and_size):
        v = v_and_size[0]
        image = jax.jvp(lambda y: guidance(y, s), (y,), (v,))[1]
        size = jnp.sqrt(jnp.sum(image**2, axis=(1, 2, 3), keepdims=True))
        return image / jnp.maximum(size, jnp.finfo(y.dtype).tiny), size

    v = jax.random.normal(key, y.shape, y.dtype)
    size = jnp.sqrt(jnp.sum(v**2, axis=(1, 2, 3), keepdims=True))
    return jnp.max(jax.lax.fori_loop(0, iterations, iterate, (v / size, size))[1])


def measured_curvature(guidance: Guidance, states: Any, s: Table, key: jax.Array, iterations: int = 8) -> Curvature:
    """The curvature of a guidance without a closed form, for `subdivide` and for the stability warning.

    Args:
      states: y as they occur, such as the trajectory of a few images without guidance, [n, b, h, w, c].
      s: their noise scales, positive, decreasing, [n].

    Returns a function that interpolates what `power_iteration` finds there, linearly in log s and log curvature. Costs
    n `iterations` gradients and their derivatives, once, before the run.
    """
    measure = jax.jit(lambda guidance, y, s: power_iteration(guidance, y, s, key, iterations))
    found = [float(measure(guidance, y, jnp.asarray(level, y.dtype))) for y, level in zip(states, s, strict=True)]
    log_s, log_found = np.log(s[::-1]), np.log(np.maximum(found, 1e-30)[::-1])
    return lambda s: np.exp(np.interp(np.log(np.maximum(s, 1e-30)), log_s, log_found))
