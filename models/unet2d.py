"""diffusers' `UNet2DModel`: DDPM, NCSN++ and ADM as one U-Net made of named blocks, under the names of its state dicts.

A folder's config.json names the block type of every level (`DOWN_BLOCKS`, `UP_BLOCKS`). Modules are named as there
with "_" for "." ("down_blocks.0.resnets.1.conv1" is `down_blocks_0_resnets_1/conv1`), so that `checkpoints.names`
hardly needs a table. Labels are indices of a chain, or noise scales where the embedding is "fourier" (it takes their
logarithm, and the output is divided by them).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from array_types import (
    Context,
    Image,
    Labels,
    Maps,
    NoiseLabels,
    OtherChannels,
    OtherMaps,
    OtherSize,
    PerImage,
    Vectors,
)
from models.layers import (
    GaussianFourierProjection,
    GroupNorm,
    attend_heads,
    groups_of,
    positional_embedding,
    timestep_embedding,
)
from models.resample import fir_downsample, fir_upsample, naive_downsample, naive_upsample

FIR = (1, 3, 3, 1)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
}


class BlockType(NamedTuple):
    """What a block type of config.json stands for."""

    attention: bool
    resampling: str  # "conv", "resnet" or "fir"; "" follows downsample_type or upsample_type
    cross: bool = False  # the attention sees a context too (models.unet2d_condition)


DOWN_BLOCKS = {
    "DownBlock2D": BlockType(False, "conv"),
    "ResnetDownsampleBlock2D": BlockType(False, "resnet"),
    "AttnDownBlock2D": BlockType(True, ""),
    "SkipDownBlock2D": BlockType(False, "fir"),
    "AttnSkipDownBlock2D": BlockType(True, "fir"),
}
UP_BLOCKS = {
    "UpBlock2D": BlockType(False, "conv"),
    "ResnetUpsampleBlock2D": BlockType(False, "resnet"),
    "AttnUpBlock2D": BlockType(True, ""),
    "SkipUpBlock2D": BlockType(False, "fir"),
    "AttnSkipUpBlock2D": BlockType(True, "fir"),
}
CHOICES = {
    "embedding_type": ("positional", "fourier", "learned"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": tuple(ACTIVATIONS),
    "freq_shift": (0, 1),
    "class_embed_type": (None, "timestep"),
    "mid_block_type": (None, "UNetMidBlock2D"),
}


def per_level(value: Any, levels: int) -> tuple:
    """One value a level, from the finest, where a config gives one for all."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * levels


class ResnetBlock2D(nn.Module):
    """Residual block; the embedding is added before the second normalisation, or scales and shifts after it.

    `resample` acts on both branches after the first activation; `project` puts a 1x1 convolution on the skip even where
    the width stays. A block that is given no embedding has no layer for one (autoencoders).
    """

    features: int
    groups: int
    groups_out: int
    epsilon: float
    act: str = "silu"
    scale_shift: bool = False
    divide_by: float = 1.0
    resample: Callable[[jax.Array], jax.Array] | None = None
    project: bool = False
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors | None = None, train: bool = False) -> OtherMaps:
        act = ACTIVATIONS[self.act]
        h = act(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(h)
        norm2 = GroupNorm(self.groups_out, self.epsilon, name="norm2")
        h = norm2(h) if embedding is None else self._modulate(norm2, h, act(embedding))
        h = nn.Dropout(self.dropout, deterministic=not train)(act(h))
        h = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(h)
        if self.project or x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return (x + h) * (1 / self.divide_by)

    def _modulate(self, norm: GroupNorm, h: Maps, embedding: Vectors) -> Maps:
        width = 2 * self.features if self.scale_shift else self.features
        shift = nn.Dense(width, name="time_emb_proj")(embedding).astype(h.dtype)[:, None, None]
        if not self.scale_shift:
            return norm(h + shift)
        scale, shift = jnp.split(shift, 2, axis=-1)
        return norm(h) * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head self-attention over all pixels with a residual; `groups` None leaves the normalisation out."""

    heads: int
    groups: int | None
    epsilon: float
    divide_by: float = 1.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        b, height, width, c = x.shape
        h = x if self.groups is None else GroupNorm(self.groups, self.epsilon, name="group_norm")(x)
        h = h.reshape(b, height * width, c)
        qkv = [nn.Dense(c, dtype=self.dtype, name=name)(h) for name in ("to_q", "to_k", "to_v")]
        h = attend_heads(jnp.concatenate(qkv, axis=-1), self.heads, "new")
        h = nn.Dense(c, dtype=self.dtype, name="to_out_0")(h).reshape(x.shape)
        return (x + h) * (1 / self.divide_by)


class UNet2D(nn.Module):
    """x [b, h, w, c], labels [b], classes [b] of integers -> output [b, h, w, out_channels]; 1 network call.

    Attributes carry the names of config.json, except `nf` and `ch_mult` (block_out_channels are nf ch_mult),
    `num_res_blocks` (layers_per_block), `embedding_type` (time_embedding_type) and `num_classes` (num_class_embeds).
    `dtype` is the compute type of convolutions between the first and the last.
    """

    choices: ClassVar[Mapping[str, tuple]] = CHOICES
    down_blocks: ClassVar[Mapping[str, BlockType]] = DOWN_BLOCKS
    up_blocks: ClassVar[Mapping[str, BlockType]] = UP_BLOCKS

    nf: int = 224
    ch_mult: Sequence[float] = (1, 2, 3, 4)
    num_res_blocks: int | Sequence[int] = 2
    down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    out_channels: int = 3
    center_input_sample: bool = False
    embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    num_train_timesteps: int | None = None  # of the "learned" embedding
    num_classes: int = 0
    class_embed_type: str | None = None
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    act_fn: str = "silu"
    attention_head_dim: Any = 8  # channels of a head; None: one head
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    dropout: float = 0.0
    dtype: Any = None

    def __post_init__(self):
        for key, choices in self.choices.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"config.model.{key}={getattr(self, key)!r} is unknown; choose one of {choices}.")
        for key, known in (("down_block_types", self.down_blocks), ("up_block_types", self.up_blocks)):
            named = getattr(self, key)
            if unknown := sorted(set(named) - set(known)):
                raise ValueError(f"config.model.{key} has {unknown}, which is unknown; choose from {sorted(known)}.")
            if len(named) != len(self.ch_mult):
                raise ValueError(f"config.model.{key} has {len(named)} entries for {len(self.ch_mult)} levels.")
            if self.norm_num_groups is None and any(known[name].resampling != "fir" for name in named):
                raise ValueError(f"config.model.norm_num_groups=None, but {list(named)} need a number of groups.")
        if self.embedding_type == "learned" and not self.num_train_timesteps:
            raise ValueError("config.model.embedding_type='learned' needs config.model.num_train_timesteps.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Image, labels: NoiseLabels, classes: Labels | None = None, train: bool = False
    ) -> OtherChannels:
        return self._run(x, labels, classes, None, train)

    def _run(
        self, x: Image, labels: NoiseLabels, classes: Labels | None, context: Context | None, train: bool
    ) -> OtherChannels:
        """The network, whatever its attention sees beside the image: `context` [b, n, d] is handed to `_attend`."""
        widths = [round(self.nf * multiplier) for multiplier in self.ch_mult]
        last, layers = len(widths) - 1, per_level(self.num_res_blocks, len(widths))
        embedding = self._embed(labels.astype(x.dtype), classes)
        x = 2 * x - 1 if self.center_input_sample else x
        pyramid = x

        # Noise scales of a thousand do not fit bfloat16's mantissa: the first convolution stays in the type of x.
        h = nn.Conv(self.nf, (3, 3), name="conv_in")(x)
        h = h if self.dtype is None else h.astype(self.dtype)
        skips = [h]
        for level, (width, kind) in enumerate(zip(widths, self.down_block_types, strict=True)):
            name, block = f"down_blocks_{level}", self.down_blocks[kind]
            for i in range(layers[level]):
                h = self._resnet(f"{name}_resnets_{i}", width, block, h)(h, embedding, train)
                h = self._attend(f"{name}_attentions_{i}", level, block, h, context) if block.attention else h
                skips.append(h)
            if level < last:
                pyramid, h = self._downsample(name, block, pyramid, h, embedding, train)
                skips.append(h)

        if self.mid_block_type is not None:
            h = self._middle(h, embedding, context, train)

        image = None  # the sum of what the "Skip" levels have put out so far
        for level, (width, kind) in enumerate(zip(reversed(widths), self.up_block_types, strict=True)):
            name, block, count = f"up_blocks_{level}", self.up_blocks[kind], layers[last - level]
            for i in range(count + 1):
                skip = skips.pop()
                resnet = self._resnet(f"{name}_resnets_{i}", width, block, h, skip)
                h = resnet(jnp.concatenate([h, skip], axis=-1), embedding, train)
                if block.attention and (block.resampling != "fir" or i == count):
                    # The "Skip" block has one attention for all its layers.
                    number = 0 if block.resampling == "fir" else i
                    h = self._attend(f"{name}_attentions_{number}", last - level, block, h, context)
            if block.resampling == "fir":
                image = None if image is None else fir_upsample(image, FIR)
            if level < last:
                image, h = self._upsample(name, block, image, h, embedding, train)

        groups = self.norm_num_groups or groups_of(self.nf)
        h = self._act(GroupNorm(groups, self.norm_eps, name="conv_norm_out")(h)).astype(x.dtype)
        h = nn.Conv(self.out_channels, (3, 3), name="conv_out")(h)
        h = h if image is None else h + image
        return h / labels.astype(h.dtype)[:, None, None, None] if self.embedding_type == "fourier" else h

    @property
    def _act(self) -> Callable[[jax.Array], jax.Array]:
        """Between the two layers of an embedding and before the last convolution, whatever act_fn is."""
        return nn.silu

    def _embed(self, labels: PerImage, classes: Labels | None) -> Vectors:
        """[b, width]: of the labels, plus that of the classes where the network has them."""
        width, features = self.time_embedding_dim or 4 * self.nf, self._features()
        embedding = self._two_layers("time_embedding", width, features(labels))
        if not self.num_classes and self.class_embed_type is None:
            return embedding
        if classes is None and not self.is_initializing():
            raise ValueError(
                "This network is conditional on classes and was given none; name them with --labels 3,7 "
                "(in Python: denoiser.given(classes=...))."
            )
        classes = jnp.zeros(labels.shape, jnp.int32) if classes is None else classes
        if self.class_embed_type == "timestep":
            return embedding + self._two_layers("class_embedding", width, features(classes.astype(labels.dtype)))
        return embedding + nn.Embed(self.num_classes, width, name="class_embedding")(classes)

    def _features(self) -> Callable[[PerImage], Vectors]:
        """Labels [b] -> fixed (or "learned") features of them."""
        if self.embedding_type == "fourier":
            fourier = GaussianFourierProjection(self.nf, name="time_proj")
            return lambda labels: fourier(jnp.log(labels))
        if self.embedding_type == "learned":
            table = nn.Embed(self.num_train_timesteps or 0, self.nf, name="time_proj")
            return lambda labels: table(labels.astype(jnp.int32))
        sinusoids = positional_embedding if self.freq_shift else timestep_embedding
        swapped = self.flip_sin_to_cos == bool(self.freq_shift)  # the first of the two begins with the sines
        return lambda labels: jnp.roll(sinusoids(labels, self.nf), self.nf // 2 if swapped else 0, axis=-1)

    def _two_layers(self, name: str, width: int, features: Vectors) -> Vectors:
        hidden = self._act(nn.Dense(width, name=f"{name}_linear_1")(features))
        return nn.Dense(width, name=f"{name}_linear_2")(hidden)

    def _resnet(
        self, name: str, features: int, block: BlockType, h: Maps, skip: OtherChannels | None = None, **changes: Any
    ) -> ResnetBlock2D:
        """The residual block for h, joined to `skip` where there is one."""
        width, joined = h.shape[-1], 0 if skip is None else skip.shape[-1]
        settings: dict[str, Any] = dict(groups=self.norm_num_groups, groups_out=self.norm_num_groups)
        if block.resampling == "fir":
            groups = groups_of(width + joined)
            if joined and block.attention:
                groups = min(width + joined // 4, 32)  # as published, without brackets around the sum
            settings = dict(groups=groups, groups_out=groups_of(features), divide_by=float(np.sqrt(2)))
        return self._block(name, features, **settings, **changes)

    def _block(self, name: str, features: int, **settings: Any) -> ResnetBlock2D:
        return ResnetBlock2D(
            features,
            epsilon=self.norm_eps,
            act=self.act_fn,
            scale_shift=self.resnet_time_scale_shift == "scale_shift",
            dropout=self.dropout,
            dtype=self.dtype,
            name=name,
            **settings,
        )

    def _attention(self, name: str, width: int, groups: int | None, divide_by: float = 1.0) -> Attention:
        heads = width // (self.attention_head_dim or width)
        return Attention(heads, groups, self.norm_eps, divide_by, self.dtype, name=name)

    def _attend(self, name: str, level: int, block: BlockType, h: Maps, context: Context | None) -> Maps:
        """h through the attention of a level, counted from the finest; this network has no context."""
        if block.resampling == "fir":
            return self._attention(name, h.shape[-1], 32, float(np.sqrt(2)))(h)
        return self._attention(name, h.shape[-1], self.norm_num_groups)(h)

    def _middle(self, h: Maps, embedding: Vectors, context: Context | None, train: bool) -> Maps:
        width = h.shape[-1]
        groups = self.norm_num_groups or groups_of(width)
        settings = dict(groups=groups, groups_out=groups, divide_by=self.mid_block_scale_factor)
        h = self._block("mid_block_resnets_0", width, **settings)(h, embedding, train)
        if self.add_attention:
            fallback = groups if self.resnet_time_scale_shift == "default" else None
            attention_groups = self.attn_norm_num_groups or fallback
            h = self._attention("mid_block_attentions_0", width, attention_groups, self.mid_block_scale_factor)(h)
        return self._block("mid_block_resnets_1", width, **settings)(h, embedding, train)

    def _downsample(
        self, name: str, block: BlockType, pyramid: OtherMaps, h: Maps, embedding: Vectors, train: bool
    ) -> tuple[OtherMaps, OtherSize]:
        """(image pyramid, features) at half the size."""
        width, resampling = h.shape[-1], block.resampling or self.downsample_type
        if resampling == "fir":
            halve = functools.partial(fir_downsample, kernel=FIR)
            h = self._resnet(f"{name}_resnet_down", width, block, h, resample=halve, project=True)(h, embedding, train)
            pyramid = halve(pyramid)
            return pyramid, h + nn.Conv(width, (1, 1), dtype=self.dtype, name=f"{name}_skip_conv")(pyramid)
        if resampling == "resnet":
            down = self._resnet(f"{name}_downsamplers_0", width, block, h, resample=naive_downsample)
            return pyramid, down(h, embedding, train)
        # Without padding on all sides, one row and one column are added right and below.
        padding = (self.downsample_padding,) * 2 if self.downsample_padding else (0, 1)
        conv = nn.Conv(width, (3, 3), 2, (padding, padding), dtype=self.dtype, name=f"{name}_downsamplers_0_conv")
        return pyramid, conv(h)

    def _upsample(
        self, name: str, block: BlockType, image: OtherChannels | None, h: Maps, embedding: Vectors, train: bool
    ) -> tuple[OtherChannels | None, OtherSize]:
        """(image put out so far, at the present size; features at twice the size)."""
        width, resampling = h.shape[-1], block.resampling or self.upsample_type
        if resampling == "fir":
            part = nn.silu(GroupNorm(groups_of(width), self.norm_eps, name=f"{name}_skip_norm")(h))
            part = nn.Conv(3, (3, 3), name=f"{name}_skip_conv")(part.astype(embedding.dtype))
            double = functools.partial(fir_upsample, kernel=FIR)
            up = self._resnet(f"{name}_resnet_up", width, block, h, resample=double, project=True)
            return part if image is None else image + part, up(h, embedding, train)
        if resampling == "resnet":
            up = self._resnet(f"{name}_upsamplers_0", width, block, h, resample=naive_upsample)
            return image, up(h, embedding, train)
        conv = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"{name}_upsamplers_0_conv")
        return image, conv(naive_upsample(h))
