"""ADM, the U-Net of guided-diffusion (Dhariwal and Nichol 2021), under the names of OpenAI's state dicts.

Modules are named as there, with "_" for "." ("input_blocks.1.0.in_layers.2" is `input_blocks_1_0/in_layers_2`), so that
`checkpoints.names` needs no table. Data in [-1, 1]; labels are indices of the 1000-step chain, fractions allowed. With
learned variance the output has twice the channels of an image, the noise first and the variance behind it.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from array_types import Image, Labels, Maps, NoiseLabels, OtherChannels, OtherMaps, OtherSize, Vectors
from models.layers import GroupNorm, attend_heads, timestep_embedding
from models.resample import naive_downsample, naive_upsample
from models.temporal import create_mixing


def conv(features: int, size: int, name: str, dtype: Any = None, zero: bool = False, stride: int = 1) -> nn.Conv:
    """A convolution that pads size // 2 on every side, also with a stride; `zero` starts it at zero."""
    padding = ((size // 2, size // 2),) * 2
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(features, (size, size), stride, padding, kernel_init=init, dtype=dtype, name=name)


def norm(name: str) -> GroupNorm:
    return GroupNorm(32, 1e-5, name=name)


def join_enlarged(x: Image, low_res: OtherSize) -> OtherChannels:
    """x [b, h, w, c] with the small images, enlarged bilinearly between pixel centres, behind its channels."""
    enlarged = jax.image.resize(low_res, x.shape, "bilinear").astype(x.dtype)
    return jnp.concatenate([x, enlarged], axis=-1)


class ResBlock(nn.Module):
    """Residual block; the embedding scales and shifts the second normalisation, or is added before it."""

    features: int
    scale_shift: bool = True
    up: bool = False
    down: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors, train: bool = False) -> OtherMaps:
        h = nn.silu(norm("in_layers_0")(x))
        if self.up or self.down:
            resample = naive_upsample if self.up else naive_downsample
            h, x = resample(h), resample(x)
        h = conv(self.features, 3, "in_layers_2", self.dtype)(h)
        width = 2 * self.features if self.scale_shift else self.features
        shift = nn.Dense(width, name="emb_layers_1")(nn.silu(embedding)).astype(h.dtype)[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = norm("out_layers_0")(h) * (1 + scale) + shift
        else:
            h = norm("out_layers_0")(h + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = conv(self.features, 3, "out_layers_3", self.dtype, zero=True)(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, "skip_connection", self.dtype)(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input."""

    heads: int
    new_order: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        b, height, width, c = x.shape
        h = norm("norm")(x).reshape(b, height * width, c)
        order = "new" if self.new_order else "legacy"
        h = attend_heads(nn.Dense(3 * c, dtype=self.dtype, name="qkv")(h), self.heads, order)
        h = nn.Dense(c, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """Half size by a strided convolution (`op`), or by the mean of 2x2 pixels."""

    with_conv: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> OtherSize:
        return conv(x.shape[-1], 3, "op", self.dtype, stride=2)(x) if self.with_conv else naive_downsample(x)


class Upsample(nn.Module):
    """Double size by repetition, and a convolution (`conv`) if wanted."""

    with_conv: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> OtherSize:
        x = naive_upsample(x)
        return conv(x.shape[-1], 3, "conv", self.dtype)(x) if self.with_conv else x


class Encoder(nn.Module):
    """What the U-Net and the classifier share: the embedding of the noise level, the way down, and the middle.

    Attributes carry the names of this toolkit's configs, where `attn_resolutions` are image sizes in pixels and
    `num_head_channels`, if positive, wins over `num_heads`. `dtype` is the compute type of the convolutions between the
    embedding and the head; normalisation, softmax, embeddings and the head stay in float32. With `mixing` (DSNO) the
    batch holds `num_times` copies of each image in a row, which exchange information after each block.
    """

    nf: int = 128
    ch_mult: Sequence[float] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: Sequence[int] = (32, 16, 8)
    num_heads: int = 1
    num_head_channels: int = 64
    use_new_attention_order: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    resamp_with_conv: bool = True
    dropout: float = 0.0
    mixing: str = "none"  # between the time points of a trajectory (models/temporal.py)
    num_times: int = 1
    modes: int = 2
    dtype: Any = None

    def _widths(self) -> list[int]:
        return [int(multiplier * self.nf) for multiplier in self.ch_mult]

    def _block(self, name: str, features: int, **resampling: Any) -> ResBlock:
        common = dict(scale_shift=self.use_scale_shift_norm, dropout=self.dropout, dtype=self.dtype)
        return ResBlock(features, **common, **resampling, name=name)

    def _attention(self, name: str, width: int, num_heads: int = 0) -> AttentionBlock:
        per_head = self.num_head_channels
        heads = width // per_head if per_head > 0 else num_heads or self.num_heads
        if heads < 1 or width % heads:
            raise ValueError(
                f"{width} channels do not divide into attention heads of config.model.num_head_channels={per_head} "
                f"(if positive) or config.model.num_heads={self.num_heads}; change those, or config.model.nf."
            )
        return AttentionBlock(heads, self.use_new_attention_order, self.dtype, name=name)

    def _mix_times(self, name: str, h: Maps) -> Maps:
        layer = create_mixing(self.mixing, self.num_times, self.modes)
        return h if layer is None else layer.copy(name=f"{name}_time")(h)

    def _embed(self, labels: NoiseLabels, dtype: Any) -> Vectors:
        """Noise levels [b] -> [b, 4 nf]."""
        features = timestep_embedding(labels, self.nf).astype(jnp.promote_types(dtype, jnp.float32))
        return nn.Dense(4 * self.nf, name="time_embed_2")(nn.silu(nn.Dense(4 * self.nf, name="time_embed_0")(features)))

    def _encode(self, x: Maps, embedding: Vectors, train: bool) -> tuple[OtherMaps, list[OtherMaps]]:
        """The features behind the middle, and those behind every input block."""
        widths = self._widths()
        h = x if self.dtype is None else x.astype(self.dtype)
        h = conv(widths[0], 3, "input_blocks_0_0", self.dtype)(h)
        skips = [h]
        for level, width in enumerate(widths):
            for _ in range(self.num_res_blocks):
                name = f"input_blocks_{len(skips)}"
                h = self._block(f"{name}_0", width)(h, embedding, train)
                if h.shape[1] in self.attn_resolutions:
                    h = self._attention(f"{name}_1", width)(h)
                h = self._mix_times(name, h)
                skips.append(h)
            if level < len(widths) - 1:
                name = f"input_blocks_{len(skips)}_0"
                if self.resblock_updown:
                    h = self._block(name, width, down=True)(h, embedding, train)
                else:
                    h = Downsample(self.resamp_with_conv, self.dtype, name=name)(h)
                skips.append(h)
        h = self._block("middle_block_0", widths[-1])(h, embedding, train)
        h = self._mix_times("middle_block", self._attention("middle_block_1", widths[-1])(h))
        return self._block("middle_block_2", widths[-1])(h, embedding, train), skips


class ADM(Encoder):
    """x [b, h, w, c], labels [b] -> output [b, h, w, c], or 2c with `learn_sigma`; 1 network call.

    Attributes:
      num_heads_upsample: heads on the way up where they are not set by `num_head_channels`; -1: as on the way down.
      learn_sigma: the output holds the learned variance behind the noise.
      num_classes: classes [b], integers below it, are required; 0: unconditional.
      super_resolution: an upsampler: images `low_res` [b, h', w', c] in [-1, 1] are required, enlarged bilinearly and
        joined to x.
    """

    num_heads_upsample: int = -1
    learn_sigma: bool = True
    num_classes: int = 0
    super_resolution: bool = False

    @nn.compact
    def __call__(
        self,
        x: Image,
        labels: NoiseLabels,
        classes: Labels | None = None,
        low_res: OtherSize | None = None,
        train: bool = False,
    ) -> OtherChannels:
        channels = x.shape[-1]
        embedding = self._embed(labels, x.dtype)
        if self.num_classes:
            embedding += nn.Embed(self.num_classes, 4 * self.nf, name="label_emb")(self._classes(x, classes))
        h, skips = self._encode(self._beside(x, low_res), embedding, train)
        index, up_heads = 0, max(self.num_heads_upsample, 0)
        for level, width in reversed(list(enumerate(self._widths()))):
            for block in range(self.num_res_blocks + 1):
                name = f"output_blocks_{index}"
                h = self._block(f"{name}_0", width)(jnp.concatenate([h, skips.pop()], axis=-1), embedding, train)
                attends = h.shape[1] in self.attn_resolutions
                if attends:
                    h = self._attention(f"{name}_1", width, up_heads)(h)
                h = self._mix_times(name, h)
                if level and block == self.num_res_blocks:
                    name = f"{name}_{2 if attends else 1}"
                    if self.resblock_updown:
                        h = self._block(name, width, up=True)(h, embedding, train)
                    else:
                        h = Upsample(self.resamp_with_conv, self.dtype, name=name)(h)
                index += 1
        h = nn.silu(norm("out_0")(h.astype(x.dtype)))
        return conv(channels * (2 if self.learn_sigma else 1), 3, "out_2", zero=True)(h)

    def _classes(self, x: Image, classes: Labels | None) -> Labels:
        if classes is None and self.is_initializing():
            return jnp.zeros(len(x), jnp.int32)
        if classes is None:
            raise ValueError(
                f"This network is conditional on {self.num_classes} classes and was given none; name them with "
                "--labels 3,7 (in Python: denoiser.given(classes=...))."
            )
        return classes

    def _beside(self, x: Image, low_res: OtherSize | None) -> OtherChannels:
        if not self.super_resolution:
            return x
        if low_res is None and not self.is_initializing():
            raise ValueError(
                "This network enlarges images and was given none; name them with config.data.low_res (in Python: "
                "denoiser.given(low_res=...))."
            )
        return join_enlarged(x, x if low_res is None else low_res)
