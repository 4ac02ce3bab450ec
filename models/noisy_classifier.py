"""A classifier of noisy images with its conventions: what it is fed, what it is told, the logarithm of what it says.

One network serves every process, because it is fed y/sqrt(1 + s^2) in [-1, 1] units, y = x/alpha and s = sigma/alpha:
for VP that is x itself, for VE it keeps inputs of order 1 at every noise scale.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from array_types import Image, Labels, PerImage
from sde_lib import GaussianSDE


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("network", "sde", "centered")
)
@dataclasses.dataclass(frozen=True)
class NoisyClassifier:
    """A network with its parameters and conventions; a pytree whose leaves are the parameters.

    Attributes:
      params: the network's parameters.
      network: `(params, x, times) -> logits`: x [b, h, w, c] of order 1, times [b] = 999 t, logits [b, classes].
      sde: the process whose clock t is, and whose data the images are.
      centered: the data range is [-1, 1], else [0, 1].
    """

    params: Any
    network: Callable[[Any, Image, PerImage], jax.Array]
    sde: GaussianSDE
    centered: bool = False

    def logits(self, x: Image, t: PerImage) -> jax.Array:
        """Logits [b, classes] for x [b, h, w, c] of the process at SDE times t [b]."""
        y, s = x / self.sde.alpha(t)[:, None, None, None], self.sde.noise_scale(t)[:, None, None, None]
        if not self.centered:
            y, s = 2 * y - 1, 2 * s
        return self.network(self.params, y * jax.lax.rsqrt(1 + s**2), 999 * t)

    def __call__(self, x: Image, t: PerImage, labels: Labels) -> PerImage:
        """log p(label | x, t) of each image, [b]: what classifier guidance differentiates."""
        logits = jax.nn.log_softmax(self.logits(x, t).astype(jnp.promote_types(x.dtype, jnp.float32)))
        return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
