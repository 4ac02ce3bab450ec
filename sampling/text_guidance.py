"""Guidance by a text through a CLIP-like image encoder that the user supplies: the image should lie near the prompt.

log p(text | x0) = -(angle between embed_image(crop) and embed_text)^2/2, averaged over crops of the estimate x0. The
crops are fixed for a run, so that guidance stays a function of y and s and the sampler deterministic.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, PerImage, Scalar

Crop = tuple[int, int, int]  # top, left, side


def crops(shape: tuple[int, int, int], count: int, seed: int = 0, smallest: float = 0.5) -> tuple[Crop, ...]:
    """The largest centred square and `count` - 1 random ones, at least `smallest` of it long, for `shape` (h, w, c)."""
    h, w, _ = shape
    side = min(h, w)
    rng = np.random.default_rng(seed)
    chosen = [((h - side) // 2, (w - side) // 2, side)]
    for _ in range(count - 1):
        size = int(rng.integers(max(1, round(smallest * side)), side + 1))
        chosen.append((int(rng.integers(h - size + 1)), int(rng.integers(w - size + 1)), size))
    return tuple(chosen)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["embed_image", "text"], meta_fields=["crops", "resolution"]
)
@dataclasses.dataclass(frozen=True)
class TextPrompt:
    """log p(text | x0) for `guidance.OnEstimate`.

    Attributes:
      embed_image: images [n, resolution, resolution, c] in the model's data range -> embeddings [n, d]; a pytree.
      text: embedding of the prompt, [1, d] for all images or [b, d]; neither needs to be normalised.
      crops: see `crops`.
      resolution: side of the images that the encoder takes.
    """

    embed_image: Callable[[Image], jax.Array]
    text: Any
    crops: tuple[Crop, ...]
    resolution: int

    def __call__(self, x0: Image, s: Scalar) -> PerImage:
        b, c, side = x0.shape[0], x0.shape[-1], self.resolution
        patches = [
            jax.image.resize(x0[:, top : top + size, left : left + size], (b, side, side, c), "linear")
            for top, left, size in self.crops
        ]
        images = _unit(self.embed_image(jnp.concatenate(patches))).reshape(len(patches), b, -1)
        distance = jnp.sqrt(jnp.sum((images - _unit(self.text)[None]) ** 2, axis=-1) + jnp.finfo(x0.dtype).tiny)
        angle = 2 * jnp.arcsin(jnp.minimum(distance / 2, 1.0))
        return -jnp.mean(angle**2, axis=0) / 2


def _unit(v: jax.Array) -> jax.Array:
    return v / jnp.sqrt(jnp.sum(v**2, axis=-1, keepdims=True))
