"""Guidance: gradients of log p(condition | y) in the view y = x/alpha, s = sigma/alpha, for every process and model.

A guided sampler follows dy/ds = eps(y, s) - w(s) s grad_y log p(condition | y): the network's flow D plus a conditional
flow C. A *guidance* is the gradient, a pytree with `__call__(y, s) -> [b, h, w, c]`; how strongly it acts, w(s), is a
`Schedule` of arrays, so that another scale compiles nothing anew. Splitting integrates D and C apart
(`sampling.splitting`); `Guided` adds them, for any solver.

| kind | condition | cost of one gradient |
|---|---|---|
| `Classifier` | a label, read by a classifier of noisy images | 1 gradient |
| `Contrast` | classifier-free guidance, autoguidance: what one model sees and another does not | 2 network calls |
| `OnEstimate` | what can be said of a clean image: text, DPS, an ordinary classifier | 1 network call, 1 gradient |
| `inverse_problems.Direct` | an observation A x0 + noise, without the network | 1 gradient, in closed form |
| `inverse_problems.PiGDM` | the same through the network's estimate | 1 network call, 1 gradient |
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Labels, PerImage, Scalar
from sampling.denoising import Denoiser
from sde_lib import GaussianSDE


@runtime_checkable
class Guidance(Protocol):
    """grad_y log p(condition | y) at noise scale s (a scalar), [b, h, w, c]; a pytree.

    What one call costs is counted from the class attributes `network_calls` and `gradient_calls` (0 and 1 for a
    guidance that has none, such as a `jax.tree_util.Partial`).
    """

    def __call__(self, y: Image, s: Scalar) -> Image: ...


def cost(guidance: Any) -> tuple[int, int]:
    """(network calls, gradient calls) of one gradient."""
    return getattr(guidance, "network_calls", 0), getattr(guidance, "gradient_calls", 1)


# --- how strongly ----------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """w(s) = scale * factor(log s) inside [low, high], 0 outside: no call is made where it is 0.

    The scale of a guidance that multiplies log p is 1 without exaggeration. For `Contrast` it is one less than the
    usual number (classifier-free w, autoguidance w), whose neutral value is 1.

    `factor` is interpolated linearly through the knots (`log_s` ascending) and constant beyond them. `clip` bounds what
    the guidance adds to eps: its root mean square over an image, where eps itself has about 1.
    """

    scale: Any
    low: Any = 0.0
    high: Any = float("inf")
    clip: Any = float("inf")
    log_s: Any = (-1.0, 1.0)
    factor: Any = (1.0, 1.0)

    def __call__(self, s: Any) -> Any:
        """w(s), elementwise: NumPy float64 in, the same out (tables); JAX in, JAX out (inside a step)."""
        xp = jnp if isinstance(s, jax.Array) else np
        log_s = xp.log(xp.maximum(s, 1e-30))
        factor = xp.interp(log_s, xp.asarray(self.log_s), xp.asarray(self.factor))
        return xp.where((self.low <= s) & (s <= self.high), self.scale * factor, 0.0)


UNIT = Schedule(1.0)  # log p as it is


def schedule(
    scale: float,
    interval: tuple[float, float] = (0.0, float("inf")),
    clip: float = float("inf"),
    shape: Callable[[np.ndarray], np.ndarray] | None = None,
    s_range: tuple[float, float] = (1e-3, 1e3),
) -> Schedule:
    """A checked `Schedule`; `shape(s)` is tabulated at 129 points of `s_range`, even in log s.

    Raises: ValueError for a scale or clip that is no finite (clip: positive) number, or an empty interval.
    """
    if not abs(scale) <= float(np.finfo(np.float32).max):
        raise ValueError(f"config.guidance.scale={scale:g} is not a finite float32; 1 is neutral, 10 is strong.")
    if not clip > 0:
        raise ValueError(f"config.guidance.clip={clip:g} must be positive; leave it out for no limit.")
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f"config.guidance.interval=({low:g}, {high:g}) needs 0 <= low < high, in noise scales s.")
    knots = np.linspace(np.log(s_range[0]), np.log(s_range[1]), 129)
    factor = np.ones_like(knots) if shape is None else np.asarray(shape(np.exp(knots)), np.float64)
    return Schedule(scale, low, high, clip, knots, factor)


def limit(change: Image, bound: float | Scalar) -> Image:
    """Shrinks each image whose root mean square exceeds `bound`."""
    rms = jnp.sqrt(jnp.mean(change**2, axis=(1, 2, 3), keepdims=True))
    factor = jnp.minimum(1.0, bound / jnp.maximum(rms, jnp.finfo(change.dtype).tiny))
    return change * factor.astype(change.dtype)


# --- kinds -----------------------------------------------------------------------------------------------------------


@functools.partial(jax.tree_util.register_dataclass, data_fields=["log_prob", "labels"], meta_fields=["sde"])
@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of noisy images, of any process: it guides every model at equal noise scale s.

    Attributes:
      log_prob: (x, t, labels) -> log p(label | x) [b]; x = alpha y [b, h, w, c], t SDE times [b] of `sde`; a pytree.
      labels: [b], or [1] for all images.
      sde: the process the classifier was trained with.
    """

    log_prob: Callable[[Image, PerImage, Labels], PerImage]
    labels: Any
    sde: GaussianSDE

    network_calls: ClassVar[int] = 0
    gradient_calls: ClassVar[int] = 1

    def __call__(self, y: Image, s: Scalar) -> Image:
        t = self.sde.time(jnp.broadcast_to(s, y.shape[:1]))
        labels = jnp.broadcast_to(self.labels, y.shape[:1])

        def total(y: Image) -> Scalar:
            return jnp.sum(self.log_prob(self.sde.alpha(t)[:, None, None, None] * y, t, labels))

        return jax.grad(total)(y)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["towards", "away"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Contrast:
    """grad log(p_towards/p_away): what one model knows and another does not.

    Classifier-free guidance (Ho and Salimans 2022): `towards` is the conditional model, `away` the unconditional one.
    Autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself"): a good model and a
    worse one. The sampler's own denoiser is `towards`; the published scale w, x0 = away + w (towards - away), is a
    `Schedule` of scale w - 1, so that an interval leaves the plain model outside.
    """

    towards: Denoiser
    away: Denoiser

    network_calls: ClassVar[int] = 2
    gradient_calls: ClassVar[int] = 0

    def __call__(self, y: Image, s: Scalar) -> Image:
        return self.x0_and_gradient(y, s)[1]

    def x0_and_gradient(self, y: Image, s: Scalar) -> tuple[Image, Image]:
        """The estimate of `towards` and the gradient, at the price of the gradient."""
        x0 = self.towards(y, s)
        return x0, (x0 - self.away(y, s)) / s**2


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["denoiser", "log_prob"], meta_fields=["through_network"]
)
@dataclasses.dataclass(frozen=True)
class OnEstimate:
    """Guidance by anything that can be said of a clean image, told to the network's estimate x0(y, s).

    Attributes:
      denoiser: (y, s) -> x0.
      log_prob: (x0, s) -> log p(condition | x0) [b], x0 in the model's data range; a pytree.
      through_network: differentiate through the denoiser, as the chain rule asks; False takes dx0/dy = 1, cheaper and
        often as good off the data.
    """

    denoiser: Denoiser
    log_prob: Any
    through_network: bool = True

    network_calls: ClassVar[int] = 1
    gradient_calls: ClassVar[int] = 1

    def __call__(self, y: Image, s: Scalar) -> Image:
        return self.x0_and_gradient(y, s)[1]

    def x0_and_gradient(self, y: Image, s: Scalar) -> tuple[Image, Image]:
        """The network's estimate and the gradient, at the price of the gradient."""
        x0, pull_back = estimate(self.denoiser, y, s, self.through_network)
        return x0, pull_back(jax.grad(lambda x0: jnp.sum(self.log_prob(x0, s)))(x0))


def estimate(
    denoiser: Denoiser, y: Image, s: Scalar, through_network: bool = True
) -> tuple[Image, Callable[[Image], Image]]:
    """x0(y, s) and v -> v^T dx0/dy (or v itself)."""
    if not through_network:
        return denoiser(y, s).astype(y.dtype), lambda v: v
    x0, vjp = jax.vjp(lambda y: denoiser(y, s).astype(y.dtype), y)
    return x0, lambda v: vjp(v)[0]


# --- without splitting -----------------------------------------------------------------------------------------------


class Guided(NamedTuple):
    """A denoiser that knows the condition: x0 + w(s) s^2 grad log p, for every solver and without splitting.

    In eps this is the usual eps - s w grad log p. A guidance that calls the network itself (it has `x0_and_gradient`)
    shares that call.
    """

    denoiser: Denoiser
    guidance: Any
    schedule: Schedule

    def __call__(self, y: Image, s: Scalar) -> Image:
        weight = self.schedule(jnp.asarray(s, y.dtype)).astype(y.dtype)

        def guided() -> Image:
            if hasattr(self.guidance, "x0_and_gradient"):
                x0, gradient = self.guidance.x0_and_gradient(y, s)
            else:
                x0, gradient = self.denoiser(y, s), self.guidance(y, s)
            eps = limit((weight * s * gradient).astype(y.dtype), self.schedule.clip)
            return x0.astype(y.dtype) + s * eps

        return jax.lax.cond(weight != 0, guided, lambda: self.denoiser(y, s).astype(y.dtype))
