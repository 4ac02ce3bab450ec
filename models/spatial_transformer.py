"""The transformer inside the U-Nets of latent diffusion (Rombach et al. 2022): pixels attend to each other and to a
context, [b, n, d], the tokens of a text or the vector of a class. Names as in `models.unet2d`."""

from typing import Any

import flax.linen as nn
import jax

from array_types import Context, Maps, Tokens
from models.layers import GroupNorm, attend_positions


class Attention(nn.Module):
    """Multi-head attention of positions [b, n, c] to a context [b, m, d], or to themselves."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Tokens, context: Context | None = None) -> Tokens:
        b, n, c = x.shape
        seen = x if context is None else context

        def project(name: str, values: Tokens) -> jax.Array:
            projected = nn.Dense(c, use_bias=False, dtype=self.dtype, name=name)(values)
            return projected.reshape(b, values.shape[1], self.heads, c // self.heads)

        h = attend_positions(project("to_q", x), project("to_k", seen), project("to_v", seen))
        return nn.Dense(c, dtype=self.dtype, name="to_out_0")(h.reshape(b, n, c))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context and a gated feed-forward layer, each added to its input.

    `only_cross`: the first attention sees the context too.
    """

    heads: int
    only_cross: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Tokens, context: Context | None) -> Tokens:
        first = Attention(self.heads, self.dtype, name="attn1")
        x = x + first(self._norm("norm1")(x), context if self.only_cross else None)
        x = x + Attention(self.heads, self.dtype, name="attn2")(self._norm("norm2")(x), context)
        # GEGLU (Shazeer 2020): one half of the features gates the other.
        features = nn.Dense(8 * x.shape[-1], dtype=self.dtype, name="ff_net_0_proj")(self._norm("norm3")(x))
        hidden, gate = features[..., : 4 * x.shape[-1]], features[..., 4 * x.shape[-1] :]
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="ff_net_2")(hidden * nn.gelu(gate, approximate=False))

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the pixels of x [b, h, w, c], added to x.

    The projections before and behind them are matrices on the channels, kept by some files as 1x1 convolutions.
    """

    heads: int
    depth: int
    groups: int
    only_cross: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, context: Context | None) -> Maps:
        b, height, width, c = x.shape
        if c % self.heads:
            raise ValueError(f"config.model.attention_head_dim={self.heads} heads do not divide {c} channels.")
        h = GroupNorm(self.groups, 1e-6, name="norm")(x).reshape(b, height * width, c)
        h = nn.Dense(c, dtype=self.dtype, name="proj_in")(h)
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.only_cross, self.dtype, name=f"transformer_blocks_{i}")
            h = block(h, context)
        return x + nn.Dense(c, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)
