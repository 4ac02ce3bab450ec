"""Layers that mix the time points of a trajectory: what makes a score network a neural operator (DSNO).

A network that is to draw M points of a trajectory at once sees M copies of the noise, each with its own noise level, in
its batch: [b M, h, w, c], the M copies of an image in a row. Between the blocks these layers exchange information among
the M copies of an image; everything else in the network is as it was, so that a teacher's weights load by name.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from array_types import Maps

Multiplier = Float[Array, "i o modes 2"]
Kernel = Float[Array, "{num_times} i o"]
BetweenTimes = Float[Array, "m m c c"]
MIXINGS = ("none", "fourier", "dense")


def circular_kernel(weights: Multiplier, num_times: int) -> Kernel:
    """The Fourier multiplier as a convolution over M circular time shifts, [M, c_in, c_out].

    weights: real and imaginary parts R of the multiplier of each of the K lowest modes, [c_in, c_out, K, 2]. With
    X = rfft(h) the layer is irfft(R X); written out, K[d] = 1/M sum_k g_k (Re R_k cos(2 pi k d / M) - Im R_k
    sin(2 pi k d / M)), where g_k counts a mode and its conjugate: 1 for k = 0 and for k = M/2, else 2.

    Raises ValueError for more modes than M points have, M // 2 + 1.
    """
    num_modes = weights.shape[2]
    if num_modes > num_times // 2 + 1:
        raise ValueError(
            f"config.model.modes={num_modes} is more than {num_times} time points have; "
            f"choose at most {num_times // 2 + 1}."
        )
    k = np.arange(num_modes)
    count = np.where((k == 0) | (2 * k == num_times), 1.0, 2.0) / num_times
    angle = 2 * np.pi * k[None] * np.arange(num_times)[:, None] / num_times
    waves = np.stack([count[None] * np.cos(angle), -count[None] * np.sin(angle)], axis=-1)
    return jnp.einsum("iokr,dkr->dio", weights, jnp.asarray(waves, weights.dtype))


class TemporalFourier(nn.Module):
    """h + LeakyReLU_0.01(circular convolution of h over time); h [b M, h, w, c], M = num_times.

    The parameter `weights` [c, c, modes, 2] does not depend on M: the layer runs at other time resolutions too. The
    kernel is made in float32 and products are accumulated in it. Zheng et al. 2023, the "temporal convolution" layer.
    """

    num_times: int
    modes: int = 2

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        channels = h.shape[-1]
        initialise = nn.initializers.normal(1e-2 / channels)
        weights = self.param("weights", initialise, (channels, channels, self.modes, 2))
        m = self.num_times
        shifts = (np.arange(m)[:, None] - np.arange(m)[None]) % m
        return h + nn.leaky_relu(_mix(h, circular_kernel(weights, m)[shifts]), 0.01)


class TemporalDense(nn.Module):
    """h + LeakyReLU_0.01(any linear map over times and channels): the ablation without translation invariance."""

    num_times: int

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        m, channels = self.num_times, h.shape[-1]
        weights = self.param("weights", nn.initializers.normal(1e-2 / channels), (m, m, channels, channels))
        return h + nn.leaky_relu(_mix(h, weights), 0.01)


def create_mixing(kind: str, num_times: int, modes: int) -> nn.Module | None:
    """The layer of config.model.mixing: "fourier", "dense", or "none" (the M points do not see one another)."""
    if kind not in MIXINGS:
        raise ValueError(f"config.model.mixing={kind!r} is unknown; choose one of {MIXINGS}.")
    if kind == "none":
        return None
    return TemporalFourier(num_times, modes) if kind == "fourier" else TemporalDense(num_times)


def _mix(h: Maps, table: BetweenTimes) -> Maps:
    """out[t] = sum_s table[t, s]^T h[s] for h [b M, h, w, c] and table [M, M, c, c], summed in at least float32."""
    m = len(table)
    split = h.reshape(-1, m, *h.shape[1:])
    wide = jnp.promote_types(h.dtype, jnp.float32)
    mixed = jnp.einsum("bshwi,tsio->bthwo", split, table.astype(h.dtype), preferred_element_type=wide)
    return mixed.reshape(h.shape).astype(h.dtype)
