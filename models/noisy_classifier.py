"""A classifier of noisy images with its conventions: what it is fed, what it is told, the logarithm of what it says.

One network serves every process and data range: it is fed y/sqrt(1 + s^2), y = x/alpha and s = sigma/alpha in units in
which images fill [-1, 1], and told s. For VP that is x itself; for VE it keeps inputs of order 1 at every noise scale.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from array_types import Image, Labels, PerImage, Vectors
from sde_lib import GaussianSDE


def log_label(s: PerImage) -> PerImage:
    """What a network is told of noise scale s [b]: 100 log s + 500, between 0 and 1000 for any s that occurs."""
    return 100 * jnp.log(s) + 500


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("network", "sde", "centered", "label")
)
@dataclasses.dataclass(frozen=True)
class NoisyClassifier:
    """A network with its parameters and conventions; a pytree whose leaves are the parameters.

    Attributes:
      params: the network's parameters.
      network: `(params, x, labels) -> logits`: x [b, h, w, c] of order 1, labels [b], logits [b, classes].
      sde: the process of the images asked about, which need not be the one of the training.
      centered: their data range is [-1, 1], else [0, 1].
      label: from noise scales in units of [-1, 1] to what the network is told.
    """

    params: Any
    network: Callable[[Any, Image, PerImage], Vectors]
    sde: GaussianSDE
    centered: bool = False
    label: Callable[[PerImage], PerImage] = log_label

    def logits(self, x: Image, t: PerImage) -> Vectors:
        """Logits [b, classes] for x [b, h, w, c] of the process at SDE times t [b]."""
        y, s = x / self.sde.alpha(t)[:, None, None, None], self.sde.noise_scale(t)
        if not self.centered:
            y, s = 2 * y - 1, 2 * s
        return self.network(self.params, y * jax.lax.rsqrt(1 + s**2)[:, None, None, None], self.label(s))

    def __call__(self, x: Image, t: PerImage, labels: Labels) -> PerImage:
        """log p(label | x, t) of each image, [b]: what classifier guidance differentiates."""
        logits = self.logits(x, t)
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jnp.take_along_axis(jax.nn.log_softmax(wide), labels[:, None], axis=1)[:, 0]
