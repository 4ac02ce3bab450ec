"""Linear measurements A of an image: inpainting, colourisation, super-resolution by block means.

Guidance by an observation A x0 + noise needs three things of A: itself, its transpose, and functions of A A^T. The last
are exact and elementwise here, because the operators below act on each pixel, pixel's colours or block alone:

| task | A x | A A^T |
|---|---|---|
| `inpainting` | mask * x | mask^2, pixel by pixel (0 where nothing is observed) |
| `colorization` | weighted mean of the colours | sum of the squared weights, 1/c for the plain mean |
| `super_resolution` | means of k x k blocks | 1/k^2 |

Every function of A then follows: the pseudo-inverse A^T (A A^T)^+ below, and in `sampling.inverse_problems` the exact
conditional flow, which knows A only through this protocol.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from array_types import Image, Mask

Observed = Float[Array, "b i j k"]  # what an operator makes of images; the axes of an image, perhaps shorter ones

# A function of the eigenvalues of A A^T, elementwise; some eigenvalues may be 0.
Spectral = Callable[[Any], Any]


@runtime_checkable
class LinearOperator(Protocol):
    """A, from images [b, h, w, c] to observations [b, i, j, k]; a pytree, so that it can be an operand of a step.

    Laws: <apply(x), v> = <x, transpose(v)>, and gram(f, v) = f(A A^T) v, so gram(identity, v) = apply(transpose(v)).
    """

    def largest(self) -> Any: ...  # the largest eigenvalue of A A^T
    def apply(self, x: Image) -> Observed: ...
    def transpose(self, v: Observed) -> Image: ...
    def gram(self, f: Spectral, v: Observed) -> Observed: ...


class Inpainting(NamedTuple):
    """A = diag(mask): 1 where a pixel is known, 0 where it is not; values between count as weaker observations."""

    mask: Mask  # [h, w, 1] or [h, w, c]

    def largest(self) -> Any:
        return np.max(np.asarray(self.mask)) ** 2

    def apply(self, x: Image) -> Observed:
        return self.mask[None] * x

    def transpose(self, v: Observed) -> Image:
        return self.mask[None] * v

    def gram(self, f: Spectral, v: Observed) -> Observed:
        return f(self.mask**2)[None] * v


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grayscale:
    """A x = sum_c weights[c] x_c, one grey channel."""

    weights: tuple[float, ...]

    def largest(self) -> float:
        return sum(weight**2 for weight in self.weights)

    def _weights(self, like: jax.Array) -> jax.Array:
        return jnp.asarray(self.weights, like.dtype)[None, None, None]

    def apply(self, x: Image) -> Observed:
        return jnp.sum(self._weights(x) * x, axis=-1, keepdims=True)

    def transpose(self, v: Observed) -> Image:
        return self._weights(v) * v

    def gram(self, f: Spectral, v: Observed) -> Observed:
        return f(jnp.asarray(self.largest(), v.dtype)) * v


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BlockMeans:
    """A x = means of `factor` x `factor` blocks; h and w are multiples of the factor."""

    factor: int

    def largest(self) -> float:
        return self.factor**-2.0

    def apply(self, x: Image) -> Observed:
        b, h, w, c = x.shape
        k = self.factor
        return jnp.mean(x.reshape(b, h // k, k, w // k, k, c), axis=(2, 4))

    def transpose(self, v: Observed) -> Image:
        repeated = jnp.repeat(jnp.repeat(v, self.factor, axis=1), self.factor, axis=2)
        return repeated / self.factor**2

    def gram(self, f: Spectral, v: Observed) -> Observed:
        return f(jnp.asarray(self.largest(), v.dtype)) * v


def positive(eigenvalues: Any) -> Any:
    """Eigenvalues of A A^T with 1 in place of 0: what is divided by where A sees nothing, and A^T then removes."""
    return jnp.where(eigenvalues > 0, eigenvalues, 1.0)


def pseudo_inverse(operator: LinearOperator, v: Observed) -> Image:
    """A^+ v = A^T (A A^T)^+ v: the smallest image that A maps onto v (onto its observable part)."""
    return operator.transpose(operator.gram(lambda lam: jnp.where(lam > 0, 1 / positive(lam), 0.0), v))


TASKS = ("inpainting", "colorization", "super_resolution")


def create(task: str, shape: tuple[int, int, int], mask: np.ndarray | None = None, factor: int = 4) -> LinearOperator:
    """The operator of a task for images of `shape` (h, w, c).

    Args:
      task: one of `TASKS`; "colourisation" and "colourization" are accepted too.
      mask: for inpainting, [h, w], [h, w, 1] or [h, w, c] in [0, 1]; 1 is known.
      factor: for super-resolution, the side of a block.

    Raises: ValueError for an unknown task or a mask or factor that does not fit the images.
    """
    h, w, c = shape
    if task == "inpainting":
        return Inpainting(jnp.asarray(_checked_mask(mask, shape), jnp.float32))
    if task in ("colorization", "colourization", "colourisation"):
        if c < 2:
            raise ValueError(f"Colourisation needs a model of colour images, this one has {c} channel.")
        return Grayscale((1 / c,) * c)
    if task == "super_resolution":
        if factor < 2 or h % factor or w % factor:
            raise ValueError(
                f"config.guidance.factor={factor} does not divide images of {h} x {w} pixels into blocks; "
                "choose a divisor of both sides, at least 2."
            )
        return BlockMeans(factor)
    raise ValueError(f"config.guidance.task={task!r} is no inverse problem; choose one of {list(TASKS)}.")


def _checked_mask(mask: Any, shape: tuple[int, int, int]) -> np.ndarray:
    where = "The inpainting mask (config.guidance.mask)"
    if mask is None:
        raise ValueError(f"{where} is missing; give an image of the same size, white where pixels are known.")
    mask = np.asarray(mask, np.float64)
    mask = mask[..., None] if mask.ndim == 2 else mask
    h, w, c = shape
    if mask.shape not in ((h, w, 1), (h, w, c)):
        raise ValueError(f"{where} has shape {mask.shape}, the images have {shape}; draw the mask at {h} x {w}.")
    if not ((0 <= mask) & (mask <= 1)).all():
        raise ValueError(f"{where} has values in [{mask.min():g}, {mask.max():g}]; they must lie in [0, 1].")
    if not mask.any():
        raise ValueError(f"{where} is 0 everywhere: nothing is observed. 1 (white) marks the known pixels.")
    return mask
