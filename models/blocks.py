"""Residual and attention blocks of NCSN++, DDPM++ and DDPM, under the names of the published Flax checkpoints."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from array_types import Maps, OtherChannels, OtherMaps, OtherSize, Vectors
from models import resample
from models.layers import NIN, GroupNorm, activation, attend, conv1x1, conv3x3, dense, groups_of


class ResnetBlockBigGANpp(nn.Module):
    """BigGAN-type residual block; resampling, if any, acts on both branches after the first activation."""

    features: int
    act: str = "swish"
    up: bool = False
    down: bool = False
    fir: bool = False
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    dropout: float = 0.0
    skip_rescale: bool = True
    init_scale: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors | None, train: bool = False) -> OtherMaps:
        act = activation(self.act)
        h = act(GroupNorm(groups_of(x.shape[-1]))(x))
        if self.up or self.down:
            h, x = self._resample(h), self._resample(x)
        h = conv3x3(self.features, dtype=self.dtype)(h)
        if embedding is not None:
            h += dense(self.features, self.dtype)(act(embedding))[:, None, None]
        h = act(GroupNorm(groups_of(h.shape[-1]))(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv3x3(self.features, self.init_scale, self.dtype)(h)
        if x.shape[-1] != self.features or self.up or self.down:
            x = conv1x1(self.features, dtype=self.dtype)(x)
        return (x + h) * float(np.sqrt(0.5)) if self.skip_rescale else x + h

    def _resample(self, x: Maps) -> OtherSize:
        if self.up:
            return resample.fir_upsample(x, self.fir_kernel) if self.fir else resample.naive_upsample(x)
        return resample.fir_downsample(x, self.fir_kernel) if self.fir else resample.naive_downsample(x)


def _ddpm_residual(block: Any, x: Maps, embedding: Vectors | None, groups, train: bool) -> OtherChannels:
    """The body that DDPM++'s and DDPM's residual blocks share; `groups` gives the number of groups for a width."""
    act = activation(block.act)
    h = act(GroupNorm(groups(x.shape[-1]))(x))
    h = conv3x3(block.features, dtype=block.dtype)(h)
    if embedding is not None:
        h += dense(block.features, block.dtype)(act(embedding))[:, None, None]
    h = act(GroupNorm(groups(h.shape[-1]))(h))
    h = nn.Dropout(block.dropout, deterministic=not train)(h)
    h = conv3x3(block.features, block.init_scale, block.dtype)(h)
    if x.shape[-1] != block.features:
        x = NIN(block.features, dtype=block.dtype)(x)
    return (x + h) * float(np.sqrt(0.5)) if block.skip_rescale else x + h


class ResnetBlockDDPMpp(nn.Module):
    """DDPM-type residual block inside NCSN++ / DDPM++."""

    features: int
    act: str = "swish"
    dropout: float = 0.0
    skip_rescale: bool = True
    init_scale: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors | None, train: bool = False) -> OtherChannels:
        return _ddpm_residual(self, x, embedding, groups_of, train)


class ResnetBlockDDPM(nn.Module):
    """Residual block of the original DDPM: 32 groups whatever the width, no rescaling."""

    features: int
    act: str = "swish"
    dropout: float = 0.0
    init_scale: float = 0.0
    dtype: Any = None
    skip_rescale: bool = False

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors | None, train: bool = False) -> OtherChannels:
        return _ddpm_residual(self, x, embedding, lambda _: 32, train)


def _attention(block: Any, x: Maps, groups: int, skip_rescale: bool) -> Maps:
    c = x.shape[-1]
    h = GroupNorm(groups)(x)
    q, k, v = (NIN(c, dtype=block.dtype)(h) for _ in range(3))
    h = NIN(c, block.init_scale, block.dtype)(attend(q, k, v))
    return (x + h) * float(np.sqrt(0.5)) if skip_rescale else x + h


class AttnBlockpp(nn.Module):
    """Single-head self-attention over all pixels, in NCSN++ / DDPM++."""

    skip_rescale: bool = True
    init_scale: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        return _attention(self, x, groups_of(x.shape[-1]), self.skip_rescale)


class AttnBlock(nn.Module):
    """Single-head self-attention of the original DDPM."""

    init_scale: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        return _attention(self, x, 32, False)


class Combine(nn.Module):
    """Joins the image pyramid with the features: a 1x1 convolution of the pyramid, added or concatenated."""

    method: str = "sum"
    dtype: Any = None

    @nn.compact
    def __call__(self, pyramid: OtherChannels, h: Maps) -> OtherChannels:
        projected = conv1x1(h.shape[-1], dtype=self.dtype)(pyramid)
        if self.method == "cat":
            return jnp.concatenate([projected, h], axis=-1)
        return projected + h
