"""Layers shared by the score networks, under the parameter names of the published Flax checkpoints.

Feature maps are [b, h, w, c]. `dtype` is the compute type of convolutions and matmuls (None: that of the inputs);
normalisation statistics, softmax and embeddings stay in at least float32 whatever it is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from array_types import Maps, NoiseLabels, OtherChannels, OtherMaps, PerChannel, PerImage, Tokens, Vectors
from models import resample

Queries = Float[Array, "b n heads d"]
Keyed = Float[Array, "b m heads d"]  # keys or values, of m positions
Attended = Float[Array, "b n c//3"]

Initializer = Callable[..., jax.Array]
ACTIVATIONS = {"swish": nn.silu, "elu": nn.elu, "relu": nn.relu, "lrelu": lambda x: nn.leaky_relu(x, 0.2)}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    if name.lower() not in ACTIVATIONS:
        raise ValueError(f"config.model.nonlinearity={name!r} is unknown; choose one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name.lower()]


def scaled_init(scale: float = 1.0) -> Initializer:
    """DDPM's initialiser: uniform, variance scale/fan_avg. Scale 0 stands for 1e-10, so that gradients still flow."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def conv3x3(features: int, init_scale: float = 1.0, dtype: Any = None, **kwargs) -> nn.Conv:
    return nn.Conv(features, (3, 3), kernel_init=scaled_init(init_scale), dtype=dtype, **kwargs)


def conv1x1(features: int, init_scale: float = 1.0, dtype: Any = None) -> nn.Conv:
    return nn.Conv(features, (1, 1), kernel_init=scaled_init(init_scale), dtype=dtype)


def dense(features: int, dtype: Any = None) -> nn.Dense:
    return nn.Dense(features, kernel_init=scaled_init(), dtype=dtype)


def groups_of(channels: int) -> int:
    """NCSN++'s number of normalisation groups: min(channels // 4, 32)."""
    return min(channels // 4, 32)


# Traced once for each shape and written into the program as if it stood there: tracing a network is half of a start.
@functools.partial(jax.jit, static_argnames=("num_groups", "epsilon"), inline=True)
def normalize_groups(x: Maps, scale: PerChannel, bias: PerChannel, num_groups: int, epsilon: float) -> Maps:
    """Group normalisation of [b, h, w, c], scale and bias [c], folded into one gain and one shift a channel and image.

    Sums run over H and W first and over the channels of a group after: no five-dimensional reshape of the map, which
    is up to a third faster on CPUs. Squares are taken about one pixel of each channel, so that a map whose mean dwarfs
    its spread (inputs at sigma = 1348) does not cancel in float32.
    """
    b, _, _, c = x.shape
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    reference = wide[:, 0, 0]
    centred = wide - reference[:, None, None]
    offset = centred.mean((1, 2))
    mean_c, variance_c = reference + offset, jnp.square(centred).mean((1, 2)) - offset**2

    def over_group(per_channel: jax.Array) -> jax.Array:
        grouped = per_channel.reshape(b, num_groups, -1).mean(-1, keepdims=True)
        return jnp.broadcast_to(grouped, (b, num_groups, c // num_groups)).reshape(b, c)

    mean = over_group(mean_c)
    variance = over_group(variance_c + (mean_c - mean) ** 2)
    gain = scale[None] * jax.lax.rsqrt(variance + epsilon)
    shift = bias[None] - mean * gain
    return (wide * gain[:, None, None] + shift[:, None, None]).astype(x.dtype)


class GroupNorm(nn.Module):
    """`normalize_groups` with its parameters."""

    num_groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        c = x.shape[-1]
        if c % self.num_groups:
            raise ValueError(
                f"GroupNorm: {c} channels do not divide into {self.num_groups} groups; choose config.model.nf so "
                "that every width, skips included, is divisible by min(width // 4, 32) (32, 64, 96, 128 work)."
            )
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return normalize_groups(x, scale, bias, self.num_groups, self.epsilon)


class GaussianFourierProjection(nn.Module):
    """[b] -> [b, 2 embedding_size]: sine and cosine of 2 pi W x, W random and fixed (Song et al. 2021)."""

    embedding_size: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, x: PerImage) -> Vectors:
        frequencies = self.param("W", nn.initializers.normal(self.scale), (self.embedding_size,))
        phase = x[:, None] * jax.lax.stop_gradient(frequencies)[None] * 2 * np.pi
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def positional_embedding(labels: NoiseLabels, size: int, max_period: float = 10000.0) -> Vectors:
    """[b] -> [b, size]: sinusoids of DDPM; labels are level indices or 999 t. Odd sizes are padded by a zero."""
    half = size // 2
    dtype = jnp.promote_types(labels.dtype, jnp.float32)
    # In the dtype of the phase throughout, as published: at label 999 the rounding of a frequency shows.
    frequencies = jnp.exp(jnp.arange(half, dtype=dtype) * -(np.log(max_period) / (half - 1)))
    phase = labels.astype(dtype)[:, None] * frequencies[None]
    embedding = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, size % 2)))


def timestep_embedding(labels: NoiseLabels, size: int, max_period: float = 10000.0) -> Vectors:
    """[b] -> [b, size]: sinusoids of ADM, cosines first, of labels times max_period^(-j/half), j < half = size/2."""
    half = size // 2
    dtype = jnp.promote_types(labels.dtype, jnp.float32)
    # The product before the quotient, as published: at label 999 the rounding of a frequency shows.
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=dtype) / half)
    phase = labels.astype(dtype)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)


class NIN(nn.Module):
    """A 1x1 convolution written as a matmul over channels, with the published names W and b."""

    features: int
    init_scale: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> OtherChannels:
        kernel = self.param("W", scaled_init(self.init_scale), (x.shape[-1], self.features))
        bias = self.param("b", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + bias[None, None, None]


def attend(q: Maps, k: Maps, v: Maps) -> Maps:
    """Single-head attention over all pixels, softmax in float32: three [b, h, w, c] maps -> [b, h, w, c]."""
    b, h, w, c = q.shape
    q, k, v = (m.reshape(b, h * w, c) for m in (q, k, v))
    logits = jnp.einsum("bqc,bkc->bqk", q, k).astype(jnp.promote_types(q.dtype, jnp.float32)) * (1 / np.sqrt(c))
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bqk,bkc->bqc", weights, v).reshape(b, h, w, c)


# The axis of (3, heads, d) along which a file keeps queries, keys and values apart: ADM's two orders, and EDM's.
QKV_AXIS = {"new": 0, "legacy": 1, "interleaved": 2}


def attend_heads(qkv: Tokens, heads: int, order: str) -> Attended:
    """Multi-head self-attention over positions, softmax in float32: [b, n, 3c] -> [b, n, c], heads outermost.

    The 3c channels are (3, heads, d) in the "new" order, (heads, 3, d) in the "legacy" and (heads, d, 3) in the
    "interleaved" one.
    """
    b, n, channels = qkv.shape
    axes, axis = [heads, channels // (3 * heads)], QKV_AXIS[order]
    q, k, v = jnp.moveaxis(qkv.reshape(b, n, *axes[:axis], 3, *axes[axis:]), 2 + axis, 0)
    return attend_positions(q, k, v).reshape(b, n, channels // 3)


def attend_positions(q: Queries, k: Keyed, v: Keyed, causal: bool = False) -> Queries:
    """Multi-head attention of n positions to m, softmax in float32: [b, n, heads, d], twice [b, m, heads, d] -> q's.

    `causal`: position i sees positions up to i only.
    """
    scale = float(q.shape[-1] ** -0.25)  # on both, so that half precision does not overflow
    logits = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k * scale)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if causal:
        seen = np.tri(logits.shape[-2], logits.shape[-1], dtype=bool)
        logits = jnp.where(seen[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


class Conv2d(nn.Module):
    """The FIR-filtered 3x3 convolution of NCSN++'s `conv` resampling; parameters `weight` (HWIO) and `bias`."""

    features: int
    kernel: Sequence[float]
    up: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        weight = self.param("weight", scaled_init(), (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, weight, bias = nn.dtypes.promote_dtype(x, weight, bias, dtype=self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        if self.up:
            # The transposed convolution as a correlation over the zero-inserted map, then the smoothing filter.
            total = len(self.kernel) - 4
            x = jax.lax.conv_general_dilated(
                x, weight, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=layout
            )
            x = resample.fir_filter(x, self.kernel, (total + 1) // 2 + 1, total // 2 + 1, gain=2.0)
        else:
            total = len(self.kernel)
            x = resample.fir_filter(x, self.kernel, (total + 1) // 2, total // 2)
            x = jax.lax.conv_general_dilated(x, weight, (2, 2), "VALID", dimension_numbers=layout)
        return x + bias[None, None, None]


class Upsample(nn.Module):
    """Factor 2 up: FIR or nearest neighbour, with or without a 3x3 convolution.

    `pyramid` marks the parameter-free resampling of an image pyramid: it advances Flax's counter of this class but has
    no place in the numbered module list of PyTorch checkpoints (`models.structure`).
    """

    features: int = 0
    with_conv: bool = False
    fir: bool = False
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    pyramid: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        features = self.features or x.shape[-1]
        if self.fir and self.with_conv:
            return Conv2d(features, tuple(self.fir_kernel), up=True, dtype=self.dtype)(x)
        x = resample.fir_upsample(x, self.fir_kernel) if self.fir else resample.naive_upsample(x)
        return conv3x3(features, dtype=self.dtype)(x) if self.with_conv else x


class Downsample(nn.Module):
    """Factor 2 down: FIR or 2x2 mean; with a convolution, strided and (without FIR) padded right and below only."""

    features: int = 0
    with_conv: bool = False
    fir: bool = False
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    pyramid: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        features = self.features or x.shape[-1]
        if self.fir:
            if self.with_conv:
                return Conv2d(features, tuple(self.fir_kernel), dtype=self.dtype)(x)
            return resample.fir_downsample(x, self.fir_kernel)
        if self.with_conv:
            return conv3x3(features, dtype=self.dtype, strides=(2, 2), padding=((0, 1), (0, 1)))(x)
        return resample.naive_downsample(x)
