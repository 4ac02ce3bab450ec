"""EDM's network scaling (Karras et al. 2022, table 1): c_skip, c_out, c_in around any network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from array_types import Image

Network = Callable[[Any, Image, jax.Array], Image]


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A network wrapped so that it predicts x0 and is told the noise scale; 1 network call.

    D(x, sigma) = c_skip x + c_out F(c_in x, sigma) with c_skip = sigma_data^2/(sigma^2 + sigma_data^2),
    c_out = sigma sigma_data/sqrt(sigma^2 + sigma_data^2) and c_in = 1/sqrt(sigma^2 + sigma_data^2): the input and the
    target of F have unit variance at every noise level. F is told sigma and takes its logarithm itself.

    Attributes:
      network: F, `(params, x [b, h, w, c], sigma [b])`; it sees [-1, 1]-scaled data times c_in.
      sigma_data: std of the data in [-1, 1] units.
      centered: the data range of x is [-1, 1]; else it is [0, 1] and is mapped there, noise scale included.
    """

    network: Network
    sigma_data: float = 0.5
    centered: bool = True

    def __call__(self, params: Any, x: Image, sigma: jax.Array) -> Image:
        x, sigma = (x, sigma) if self.centered else (2 * x - 1, 2 * sigma)
        scale = jnp.sqrt(sigma**2 + self.sigma_data**2)[:, None, None, None]
        c_skip, c_out = (self.sigma_data / scale) ** 2, sigma[:, None, None, None] * self.sigma_data / scale
        x0 = c_skip * x + c_out * self.network(params, x / scale, sigma)
        return x0 if self.centered else (x0 + 1) / 2
