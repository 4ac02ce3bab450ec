"""What the solvers in the view y = x/alpha, s = sigma/alpha share: the denoiser, the start, records."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from array_types import Image, Keys, Scalar
from sampling.base import Sampler, Step

# (y, s) -> x0 estimate in the model's data range, s shared by the batch; a pytree with __call__, parameters as leaves.
Denoiser = Callable[[Image, Scalar], Image]


@dataclasses.dataclass(frozen=True)
class Recording:
    """Any step whose state has `y` and `x0`, recording both: where it ended and its last estimate of the image."""

    step: Step

    def __call__(self, operands: Any, state: Any, row: Any) -> tuple[Any, tuple[Image, Image]]:
        state, _ = self.step(operands, state, row)
        return state, (state.y, state.x0)


def start_noise(keys: Keys, shape: tuple[int, ...]) -> Image:
    """The noise each image of `shape` (h, w, c) starts from, standard normal in float32, [b, h, w, c]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def create(
    step: Step,
    init: Callable[[Image], Any],
    operands: Callable[[Keys], Any],
    rows: Any,
    nfe: int,
    shape: tuple[int, int, int],
    prior_scale: float,
    record: bool = False,
) -> Sampler:
    """The sampler of a step function, its rows and its `init(y) -> state`, for images of `shape` (h, w, c).

    Args:
      operands: what the step needs besides the state, from the keys of the images: the denoiser, perhaps the noise.
      nfe: network calls of all rows.
      prior_scale: standard deviation of y at s[0]: s[0] for VE, 1/alpha for VP.

    The start noise of an image is normal(its key) in float32. The result is y, which is the image at s = 0.
    """

    def begin(keys: Keys) -> tuple[Any, Any]:
        return operands(keys), init(prior_scale * start_noise(keys, shape))

    return Sampler(Recording(step) if record else step, rows, begin, lambda state: state.y, nfe)
