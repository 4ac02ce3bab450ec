"""The U-Net of the unofficial progressive-distillation program (its students are `.pt` files), under its own names.

Modules are named as in its state dicts with "_" for "." ("down.1.resblocks.conv1" is `down_1_resblocks/conv1`). A
v-model of the chain of `sde_lib.DiscreteVPSDE` ("cosine"), on images in [-1, 1] whose channels it reads as blue, green,
red. A student of n steps has a chain of n levels of its own; its network is told `time_scale` times the level, which is
a step of the 1024 that its first teacher knew.
"""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from array_types import Image, Maps, NoiseLabels, OtherChannels, PerImage, Vectors
from models.layers import GroupNorm, attend_heads, timestep_embedding
from models.resample import naive_upsample


def _conv(features: int, size: int, name: str, dtype: Any, stride: int = 1) -> nn.Conv:
    padding = ((size // 2, size // 2),) * 2  # on every side, also with a stride
    return nn.Conv(features, (size, size), stride, padding, dtype=dtype, name=name)


def _plain_norm(x: Maps, groups: int) -> Maps:
    """Group normalisation without scale and shift of its own, which the embedding supplies."""
    unit = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return cast(Maps, GroupNorm(groups, 1e-5, parent=None).apply({"params": unit}, x))


class ResBlock(nn.Module):
    """Residual block; the embedding is added before the second normalisation, or ("affine") scales and shifts it."""

    features: int
    groups: int
    affine: bool
    dropout: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors, train: bool = False) -> OtherChannels:
        h = nn.silu(GroupNorm(self.groups, 1e-5, name="norm1")(x))
        h = _conv(self.features, 3, "conv1", self.dtype)(h)
        width = 2 * self.features if self.affine else self.features
        projected = nn.Dense(width, name="time_1")(nn.silu(embedding)).astype(h.dtype)[:, None, None]
        if self.affine:
            scale, shift = jnp.split(projected, 2, axis=-1)
            h = (1 + scale) * _plain_norm(h, self.groups) + shift
        else:
            h = GroupNorm(self.groups, 1e-5, name="norm2")(h + projected)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = _conv(self.features, 3, "conv2", self.dtype)(h)
        return h + (x if x.shape[-1] == self.features else _conv(self.features, 1, "skip", self.dtype)(x))


class SelfAttention(nn.Module):
    """Multi-head attention whose logits are divided by the root of all channels, not of a head's, as published."""

    groups: int
    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        b, height, width, c = x.shape
        qkv = _conv(3 * c, 1, "qkv", self.dtype)(GroupNorm(self.groups, 1e-5, name="norm")(x))
        split = qkv.reshape(b, height * width, self.num_heads, 3, c // self.num_heads)
        # attend_heads divides by the root of a head's channels.
        split *= jnp.asarray([self.num_heads**-0.5, 1, 1], split.dtype)[None, None, None, :, None]
        h = attend_heads(split.reshape(b, height * width, 3 * c), self.num_heads, "legacy").reshape(x.shape)
        return _conv(c, 1, "out", self.dtype)(h) + x


class PDUNet(nn.Module):
    """x [b, h, w, c], labels [b], levels of the student's chain -> v [b, h, w, c]; 1 network call.

    Attributes beyond those of NCSN++: `attn_strides`, the halvings 2^level at which residual blocks attend;
    `affine_time`; `time_scale`; `channel_order`, in which the network reads and writes colours ("bgr" or "rgb").
    """

    nf: int = 112
    ch_mult: Sequence[float] = (1, 2, 2, 4, 4)
    num_res_blocks: int = 2
    attn_strides: Sequence[int] = (8, 16)
    num_heads: int = 4
    affine_time: bool = True
    time_scale: float = 1.0
    channel_order: str = "bgr"
    dropout: float = 0.0
    dtype: Any = None

    def __post_init__(self):
        if self.channel_order not in ("bgr", "rgb"):
            raise ValueError(f"config.model.channel_order={self.channel_order!r} is unknown; choose 'bgr' or 'rgb'.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Image, labels: NoiseLabels, train: bool = False) -> Image:
        embedding = self._embed(labels.astype(x.dtype) * self.time_scale)
        widths = [round(self.nf * multiplier) for multiplier in self.ch_mult]

        def block(name: str, h: Maps, features: int, attends: bool) -> OtherChannels:
            residual = ResBlock(features, self.nf // 4, self.affine_time, self.dropout, self.dtype)
            h = residual.copy(name=f"{name}_resblocks")(h, embedding, train)
            if attends:
                h = SelfAttention(self.nf // 4, self.num_heads, self.dtype, name=f"{name}_attention")(h)
            return h

        h = _conv(self.nf, 3, "down_0", None)(x[..., ::-1] if self.channel_order == "bgr" else x)
        skips = [h if self.dtype is None else h.astype(self.dtype)]
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                skips.append(block(f"down_{len(skips)}", skips[-1], width, 2**level in self.attn_strides))
            if level < len(widths) - 1:
                skips.append(_conv(width, 3, f"down_{len(skips)}_0", self.dtype, stride=2)(skips[-1]))

        h = block("mid_0", skips[-1], widths[-1], True)
        h = block("mid_1", h, widths[-1], False)

        number = 0
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.num_res_blocks + 1):
                joined = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(f"up_{number}", joined, width, 2**level in self.attn_strides)
                number += 1
            if level > 0:
                h = _conv(width, 3, f"up_{number}_1", self.dtype)(naive_upsample(h))
                number += 1

        h = nn.silu(GroupNorm(self.nf // 4, 1e-5, name="out_0")(h)).astype(x.dtype)
        h = _conv(x.shape[-1], 3, "out_2", None)(h)
        return h[..., ::-1] if self.channel_order == "bgr" else h

    def _embed(self, labels: PerImage) -> Vectors:
        features = jnp.roll(timestep_embedding(labels, self.nf), self.nf // 2, axis=-1)  # sines first
        hidden = nn.silu(nn.Dense(4 * self.nf, name="time_1")(features))
        return nn.Dense(4 * self.nf, name="time_3")(hidden)
