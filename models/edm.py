"""EDM's network scaling (Karras et al. 2022, table 1): c_skip, c_out, c_in and c_noise around any network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from array_types import Image

Network = Callable[[Any, Image, jax.Array], Image]


def scaled(network: Network, sigma_data: float = 0.5, centered: bool = True) -> Network:
    """Wraps `network(params, x, labels)` so that it predicts x0 and is told the noise scale.

    D(x, sigma) = c_skip x + c_out F(c_in x, sigma) with c_skip = sigma_data^2/(sigma^2 + sigma_data^2),
    c_out = sigma sigma_data/sqrt(sigma^2 + sigma_data^2) and c_in = 1/sqrt(sigma^2 + sigma_data^2): input and target
    of F have unit variance at every noise level. F is told sigma and takes the logarithm itself (Fourier embedding).

    Args:
      network: sees [-1, 1]-scaled data times c_in.
      sigma_data: std of the data in [-1, 1] units.
      centered: the data range of x is [-1, 1]; else it is [0, 1] and is mapped there, noise scale included.

    Returns: `(params, x [b, h, w, c], sigma [b]) -> x0` in the data range of x; 1 network call.
    """

    def denoise(params: Any, x: Image, sigma: jax.Array) -> Image:
        unit = 1.0 if centered else 2.0
        x = x if centered else 2 * x - 1
        sigma = unit * sigma
        scale = jnp.sqrt(sigma**2 + sigma_data**2)[:, None, None, None]
        c_skip, c_out = (sigma_data / scale) ** 2, sigma[:, None, None, None] * sigma_data / scale
        x0 = c_skip * x + c_out * network(params, x / scale, sigma)
        return x0 if centered else (x0 + 1) / 2

    return denoise
