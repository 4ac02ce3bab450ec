"""The original DDPM U-Net (Ho et al. 2020) as score_sde trains it: sinusoidal embedding, strided convolutions."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from array_types import Image, Maps, NoiseLabels
from models import layers
from models.blocks import AttnBlock, ResnetBlockDDPM
from models.layers import Downsample, GroupNorm, Upsample, conv3x3, dense


class DDPM(nn.Module):
    """x [b, h, w, c], labels [b] (levels, fractional for VP, or 999 t) -> output [b, h, w, c]; 1 network call."""

    nf: int = 128
    ch_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = (16,)
    resamp_with_conv: bool = True
    conditional: bool = True
    scale_by_sigma: bool = False
    dropout: float = 0.1
    nonlinearity: str = "swish"
    centered: bool = True
    discrete_sigmas: Sequence[float] = ()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Image, labels: NoiseLabels, train: bool = False) -> Image:
        act = layers.activation(self.nonlinearity)
        embedding = None
        if self.conditional:
            features = layers.positional_embedding(labels, self.nf)
            hidden = act(dense(4 * self.nf)(features))
            embedding = dense(4 * self.nf)(hidden)

        def block(features: int) -> nn.Module:
            return ResnetBlockDDPM(features, self.nonlinearity, self.dropout, dtype=self.dtype)

        def attend_here(h: Maps) -> Maps:
            return AttnBlock(dtype=self.dtype)(h) if h.shape[1] in self.attn_resolutions else h

        x = x if self.centered else 2 * x - 1
        h = conv3x3(self.nf)(x)
        h = h if self.dtype is None else h.astype(self.dtype)
        skips = [h]
        for level, multiplier in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = attend_here(block(self.nf * multiplier)(h, embedding, train))
                skips.append(h)
            if level < len(self.ch_mult) - 1:
                h = Downsample(with_conv=self.resamp_with_conv, dtype=self.dtype)(h)
                skips.append(h)

        width = h.shape[-1]
        h = block(width)(h, embedding, train)
        h = AttnBlock(dtype=self.dtype)(h)
        h = block(width)(h, embedding, train)

        for level, multiplier in reversed(list(enumerate(self.ch_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = block(self.nf * multiplier)(jnp.concatenate([h, skips.pop()], axis=-1), embedding, train)
            h = attend_here(h)
            if level > 0:
                h = Upsample(with_conv=self.resamp_with_conv, dtype=self.dtype)(h)

        h = act(GroupNorm(32)(h)).astype(jnp.promote_types(h.dtype, jnp.float32))
        h = conv3x3(x.shape[-1], 0.0)(h).astype(x.dtype)
        if not self.scale_by_sigma:
            return h
        sigmas = jnp.asarray(np.asarray(self.discrete_sigmas), h.dtype)[labels.astype(jnp.int32)]
        return h / sigmas[:, None, None, None]
