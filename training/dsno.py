"""Training a neural operator: noise in, the teacher's trajectory out (DSNO, Zheng et al. 2023).

A target is the teacher's estimate of the image, x0(t_m), at M times of its deterministic path; the last one is its
sample. Noise is never stored: it is drawn again from (seed, index), the contract of the trajectory store.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, PerImage, Table
from models.operator import Operator
from sampling import denoising

DISTANCES = ("l1", "l2", "huber", "perceptual")
Features = Callable[[Image], Sequence[jax.Array]]  # images [n, h, w, c] -> maps [n, h', w', d]
WEIGHTINGS = ("snr", "ones")
SPACINGS = ("uniform", "quadratic")


@dataclasses.dataclass(frozen=True)
class OperatorLoss:
    """Settings of the loss (config.dsno)."""

    distance: str = "l1"  # "l1", "l2", "huber" (pseudo-Huber) or "perceptual" (of `features`)
    weighting: str = "snr"
    weight_cap: float = 1e4
    huber: float = 0.03  # where the pseudo-Huber distance turns from square to absolute, in units of the data
    features: Features | None = None

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise ValueError(f"config.dsno.distance={self.distance!r} is unknown; choose one of {DISTANCES}.")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"config.dsno.weighting={self.weighting!r} is unknown; choose one of {WEIGHTINGS}.")
        if self.distance == "perceptual" and self.features is None:
            raise ValueError(
                "config.dsno.distance='perceptual' needs a network: name its weights, "
                "config.loss.weights=vgg16-397923af.pth, or a function that makes one, "
                "config.dsno.features=path/my_vgg.py:make_features (docs/methods/dsno.md)."
            )


def stored_times(spacing: str, num_steps: int, count: int) -> tuple[Table, np.ndarray]:
    """Times of `count` estimates along a path of `num_steps` equal steps from t = 1 to 0, and the steps that made them.

    Returns (label times, decreasing, the last 0; step numbers 0..num_steps-1). The estimate that a step makes at its
    start carries the time at which the step arrives, as the published trajectories do: the last one is the sample.
    "uniform": t_k = 1 - k/count for k = 1..count. "quadratic" puts more of them near the image: t_k = (1 - k/count)^2,
    the published 2 (16 - k)^2/512 where 16 of them are kept of 512 steps.

    Raises ValueError where the spacing does not fall on steps.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"config.dsno.spacing={spacing!r} is unknown; choose one of {SPACINGS}.")
    left = np.arange(count - 1, -1, -1)
    steps_left = left**2 * num_steps / count**2 if spacing == "quadratic" else left * num_steps / count
    if not np.allclose(steps_left, np.round(steps_left)):
        raise ValueError(
            f"{count} {spacing} times do not fall on {num_steps} steps; choose a number of steps that is a multiple of "
            f"{count**2 if spacing == 'quadratic' else count} (config.dsno.teacher_steps)."
        )
    whole = np.round(steps_left).astype(np.int64)
    return whole / num_steps, num_steps - 1 - whole


def snr_weights(lam: Table, cap: float = 1e4) -> Table:
    """clip(alpha/sigma, 1, cap) at lam = log(alpha/sigma) [M]: in practice "match the final image"."""
    return np.clip(np.exp(np.minimum(lam, 50.0)), 1.0, cap)


def time_weights(settings: OperatorLoss, operator: Operator) -> Table:
    """The weight of each time of the operator, [M] float64."""
    if settings.weighting == "ones":
        return np.ones(len(operator.times))
    sde = operator.convention.sde
    scales = np.asarray(sde.noise_scale(np.asarray(operator.told_times)), np.float64)
    weights = snr_weights(-np.log(scales), settings.weight_cap)
    return np.where(np.asarray(operator.times) > 0, weights, settings.weight_cap)  # no noise at all at t = 0


def distances(settings: OperatorLoss, found: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over pixels and channels of each image at each time: [b, M, h, w, c] twice -> [b, M]."""
    if settings.features is not None:
        images = (found.reshape(-1, *found.shape[2:]), target.reshape(-1, *found.shape[2:]))
        return perceptual(settings.features, *images).reshape(found.shape[:2])
    difference = found - target
    if settings.distance == "l1":
        values = jnp.abs(difference)
    elif settings.distance == "l2":
        values = difference**2
    else:
        values = jnp.sqrt(difference**2 + settings.huber**2) - settings.huber
    return values.mean(axis=(2, 3, 4))


def perceptual(features: Features, a: Image, b: Image) -> PerImage:
    """Sum over the maps of the mean over pixels of |u - v|^2, u and v the unit vectors of features there; [n].

    With VGG's features it is LPIPS without its learned weights, the published choice.
    """
    total = jnp.zeros(len(a), a.dtype)
    for u, v in zip(features(a), features(b), strict=True):
        u, v = (part * jax.lax.rsqrt(jnp.sum(part**2, axis=-1, keepdims=True) + 1e-10) for part in (u, v))
        total += jnp.sum((u - v) ** 2, axis=-1).mean(axis=(1, 2))
    return total


def start_noise(seed: int, indices: jax.Array, shape: tuple[int, int, int]) -> Image:
    """The noise of records number `indices` [b], [b, h, w, c] float32: normal(fold_in(key(seed), index))."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices.astype(jnp.uint32))
    return denoising.start_noise(keys, shape)


def loss(settings: OperatorLoss, operator: Operator, noise: Image, target: jax.Array) -> PerImage:
    """Mean over the M times of w_m d_m, for each image, [b].

    Args:
      noise: [b, h, w, c] ~ N(0, I).
      target: the teacher's estimates [b, M, h, w, c] at `operator.times`, in the data range.
    """
    weights = jnp.asarray(time_weights(settings, operator), noise.dtype)
    return (weights[None] * distances(settings, operator.trajectory(noise), target)).mean(axis=1)
