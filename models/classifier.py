"""The noise-conditional classifier of guided-diffusion: ADM's encoder with a pooling head (Dhariwal and Nichol 2021).

Tensors have the names of OpenAI's `*_classifier.pt`. The network sees noisy images (x0 + s eps)/sqrt(1 + s^2), x0 in
[-1, 1], and the level's index (999 t): `models.noisy_classifier` feeds it from any process and gives log p(y | x). For
32-pixel images a small one is enough: `EncoderUNet(nf=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(8,),
num_head_channels=32, num_classes=10)`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from array_types import Image, Maps, PerImage, Vectors
from models.adm import Encoder, conv, norm
from models.layers import attend_heads

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


class AttentionPool(nn.Module):
    """CLIP's pooling: a token that is the mean of all pixels attends to them and itself. [b, h, w, c] -> [b, outputs].

    The positional embedding ties the network to one image size.
    """

    outputs: int
    head_channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Vectors:
        b, height, width, c = x.shape
        tokens = x.reshape(b, height * width, c)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        spread = nn.initializers.normal(c**-0.5)
        positions = self.param("positional_embedding", spread, (c, height * width + 1)).T[None]
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv_proj")(tokens + positions.astype(tokens.dtype))
        pooled = attend_heads(qkv, c // self.head_channels, "new")[:, 0]
        return nn.Dense(self.outputs, dtype=self.dtype, name="c_proj")(pooled)


class EncoderUNet(Encoder):
    """x [b, h, w, c] of order 1, labels [b] of the noise level -> logits [b, num_classes]; 1 classifier call.

    Attributes:
      num_classes: number of logits.
      pool: "attention", "adaptive" (mean), "spatial" or "spatial_v2" (means of all blocks through a hidden layer).
    """

    num_classes: int = 1000
    pool: str = "attention"

    def __post_init__(self):
        if self.pool not in POOLS:
            raise ValueError(f"config.classifier.pool={self.pool!r} is unknown; choose one of {POOLS}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Image, labels: PerImage, train: bool = False) -> Vectors:
        h, blocks = self._encode(x, self._embed(labels, x.dtype), train)
        dtype = x.dtype
        if self.pool == "attention":
            h = nn.silu(norm("out_0")(h.astype(dtype)))
            return AttentionPool(self.num_classes, self.num_head_channels, name="out_2")(h)
        if self.pool == "adaptive":
            h = nn.silu(norm("out_0")(h.astype(dtype))).mean((1, 2), keepdims=True)
            return conv(self.num_classes, 1, "out_3", zero=True)(h)[:, 0, 0]
        h = jnp.concatenate([block.astype(dtype).mean((1, 2)) for block in [*blocks, h]], axis=-1)
        h = nn.Dense(2048, name="out_0")(h)
        if self.pool == "spatial":
            return nn.Dense(self.num_classes, name="out_2")(nn.relu(h))
        h = nn.silu(norm("out_1")(h[:, None, None]))[:, 0, 0]
        return nn.Dense(self.num_classes, name="out_3")(h)
