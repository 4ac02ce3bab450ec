"""The two U-Nets of EDM (Karras et al. 2022): SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM).

Both are one U-Net of one block type with different switches. Modules are named as in EDM's pickles, with "_" for "."
("enc.8x8_down.conv0" is `enc_8x8_down/conv0`), so that `checkpoints.names` needs no table. The networks see scaled data
of unit variance and c_noise; `models.edm.Scaled` turns them into denoisers. Labels of augmentations are for training:
left out, they are zero.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Labels, Maps, NoiseLabels, OtherChannels, OtherMaps, OtherSize, PerImage, Vectors
from models.layers import GroupNorm, attend_heads, groups_of, positional_embedding, scaled_init, timestep_embedding
from models.resample import fir_downsample, fir_upsample

Classes = Labels | Vectors  # one number an image, or a row of shares
HALF = float(np.sqrt(0.5))
EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("none", "input_skip", "residual")  # EDM's encoder_type standard, skip, residual
DECODERS = ("none", "output_skip")  # EDM's decoder_type standard, skip


class Conv(nn.Module):
    """A convolution, behind resampling by the filter if `up` or `down`; `fused`: the filter comes after, unpadded."""

    features: int
    size: int = 3
    up: bool = False
    down: bool = False
    fir_kernel: Sequence[float] = (1, 1)
    fused: bool = False
    init_scale: float = 1.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        border = self.size // 2
        if self.fused:
            border += (len(self.fir_kernel) - 1) // 2
        else:
            x = resample(x, self.up, self.down, self.fir_kernel)
        kernel = self.param("kernel", scaled_init(self.init_scale), (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((border, border),) * 2, dimension_numbers=layout)
        if self.fused:
            x = fir_downsample(x, self.fir_kernel, padded=True)
        return x + bias[None, None, None]


def resample(x: Maps, up: bool, down: bool, fir_kernel: Sequence[float]) -> OtherSize:
    x = fir_upsample(x, fir_kernel) if up else x
    return fir_downsample(x, fir_kernel) if down else x


class UNetBlock(nn.Module):
    """Residual block with optional resampling and self-attention; every sum is multiplied by `skip_scale`.

    `heads` 0 means no attention. `adaptive`: the embedding scales and shifts the second normalisation; else it is added
    before it. `project`: a resampled shortcut gets a 1x1 convolution even where the width stays.
    """

    features: int
    heads: int = 0
    up: bool = False
    down: bool = False
    fir_kernel: Sequence[float] = (1, 1)
    adaptive: bool = True
    project: bool = False
    skip_scale: float = 1.0
    epsilon: float = 1e-5
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors, train: bool = False) -> OtherMaps:
        conv = functools.partial(Conv, dtype=self.dtype)
        resampling: dict[str, Any] = dict(up=self.up, down=self.down, fir_kernel=tuple(self.fir_kernel))
        h = conv(self.features, name="conv0", **resampling)(nn.silu(self._norm("norm0", x)))
        width = 2 * self.features if self.adaptive else self.features
        shift = nn.Dense(width, kernel_init=scaled_init(), name="affine")(embedding).astype(h.dtype)[:, None, None]
        if self.adaptive:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = nn.silu(self._norm("norm1", h) * (1 + scale) + shift)
        else:
            h = nn.silu(self._norm("norm1", h + shift))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.features, init_scale=0.0, name="conv1")(h)
        if x.shape[-1] != self.features or (self.project and (self.up or self.down)):
            x = conv(self.features, 1, name="skip", **resampling)(x)
        else:
            x = resample(x, **resampling)
        h = (h + x) * self.skip_scale
        if not self.heads:
            return h
        b, height, columns, c = h.shape
        qkv = conv(3 * c, 1, name="qkv")(self._norm("norm2", h)).reshape(b, height * columns, 3 * c)
        attended = attend_heads(qkv, self.heads, "interleaved").reshape(h.shape)
        return (conv(c, 1, init_scale=0.0, name="proj")(attended) + h) * self.skip_scale

    def _norm(self, name: str, x: Maps) -> Maps:
        return GroupNorm(groups_of(x.shape[-1]), self.epsilon, name=name)(x)


class _UNet(nn.Module):
    """The way down and up that both networks share, and the attributes (named as in this toolkit's configs).

    Attributes beyond those of NCSN++:
      channel_mult_emb: width of the embedding in units of nf.
      num_classes: classes are integers [b] or, soft, rows [b, num_classes]; without any the row is zero. 0: none.
      augment_dim: length of the augmentation labels; 0: none.
      learn_sigma: twice the channels come out; what is behind the image is not used (iDDPM).
      dtype: compute type of the convolutions; normalisation, softmax, embeddings and the head stay in float32.
    """

    nf: int = 128
    ch_mult: Sequence[float] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    channel_mult_emb: int = 4
    num_classes: int = 0
    augment_dim: int = 0
    dropout: float = 0.1
    learn_sigma: bool = False
    dtype: Any = None

    def _block(self, name: str, features: int, attention: bool = False, **resampling: Any) -> UNetBlock:
        raise NotImplementedError(f"{type(self).__name__} has no block.")

    def _join_input(self, name: str, pyramid: OtherMaps, h: Maps) -> tuple[OtherMaps, Maps]:
        """(image pyramid, features) of a level, joined."""
        return pyramid, h

    def _walk(self, x: Image, embedding: Vectors, first: int, attends_last_only: bool, train: bool):
        """Features of each level of the way up, lowest resolution first, as (name of the level, features)."""
        widths = [int(multiplier * self.nf) for multiplier in self.ch_mult]
        h = pyramid = x
        skips: list[OtherMaps] = []
        for level, width in enumerate(widths):
            size = x.shape[1] >> level
            name, attends = f"enc_{size}x{size}", size in self.attn_resolutions
            if level == 0:
                h = h if self.dtype is None else h.astype(self.dtype)
                h = Conv(first, dtype=self.dtype, name=f"{name}_conv")(h)
            else:
                h = self._block(f"{name}_down", h.shape[-1], down=True)(h, embedding, train)
                pyramid, h = self._join_input(name, pyramid, h)
            skips.append(h)
            for block in range(self.num_res_blocks):
                h = self._block(f"{name}_block{block}", width, attends)(h, embedding, train)
                skips.append(h)
        for level, width in reversed(list(enumerate(widths))):
            size = x.shape[1] >> level
            name, attends = f"dec_{size}x{size}", size in self.attn_resolutions
            if level == len(widths) - 1:
                h = self._block(f"{name}_in0", h.shape[-1], True)(h, embedding, train)
                h = self._block(f"{name}_in1", h.shape[-1])(h, embedding, train)
            else:
                h = self._block(f"{name}_up", h.shape[-1], up=True)(h, embedding, train)
            for block in range(self.num_res_blocks + 1):
                here = attends and (block == self.num_res_blocks or not attends_last_only)
                joined = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"{name}_block{block}", width, here)(joined, embedding, train)
            yield name, h

    def _head(self, norm: str, conv: str, epsilon: float, x: Image, h: OtherMaps) -> OtherMaps:
        """Normalisation and the output convolution, in at least the type of x."""
        h = nn.silu(GroupNorm(groups_of(h.shape[-1]), epsilon, name=norm)(h.astype(x.dtype)))
        return Conv(x.shape[-1] * (2 if self.learn_sigma else 1), init_scale=0.0, name=conv)(h)

    def _add_augmentation(self, embedding: Vectors, augment_labels: Vectors | None) -> Vectors:
        if not self.augment_dim:
            return embedding
        if augment_labels is None:
            augment_labels = jnp.zeros((len(embedding), self.augment_dim), embedding.dtype)
        return embedding + _dense(embedding.shape[-1], "map_augment", bias=False)(augment_labels)

    def _class_rows(self, embedding: Vectors, classes: Classes | None) -> Vectors:
        if classes is None:
            return jnp.zeros((len(embedding), self.num_classes), embedding.dtype)
        if jnp.issubdtype(classes.dtype, jnp.integer):
            return jax.nn.one_hot(classes, self.num_classes, dtype=embedding.dtype)
        return classes.astype(embedding.dtype)


def _dense(features: int, name: str, bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias=bias, kernel_init=scaled_init(), name=name)


class FourierEmbedding(nn.Module):
    """[b] -> [b, size]: sine and cosine of 2 pi `freqs` x, with frequencies drawn once and fixed."""

    size: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, x: PerImage) -> Vectors:
        freqs = self.param("freqs", nn.initializers.normal(self.scale), (self.size // 2,))
        phase = 2 * np.pi * x[:, None] * jax.lax.stop_gradient(freqs)[None]
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


class SongUNet(_UNet):
    """DDPM++ (positional embedding) and NCSN++ (Fourier embedding, residual input pyramid, FIR filter) in EDM's form.

    x [b, h, w, c], labels c_noise [b] -> [b, h, w, c]; 1 network call. `progressive_input` and `progressive` are EDM's
    encoder_type and decoder_type; `channel_mult_noise` is the width of the noise embedding in units of nf.
    """

    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    progressive_input: str = "none"
    progressive: str = "none"
    fir_kernel: Sequence[float] = (1, 1)

    def __post_init__(self):
        for key, choices in (
            ("embedding_type", EMBEDDINGS),
            ("progressive_input", ENCODERS),
            ("progressive", DECODERS),
        ):
            if getattr(self, key) not in choices:
                raise ValueError(f"config.model.{key}={getattr(self, key)!r} is unknown; choose one of {choices}.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Image,
        labels: NoiseLabels,
        classes: Classes | None = None,
        augment_labels: Vectors | None = None,
        train: bool = False,
    ) -> OtherChannels:
        embedding = self._embed(labels.astype(x.dtype), classes, augment_labels)
        image = None
        for name, h in self._walk(x, embedding, self.nf, True, train):
            if self.progressive == "output_skip":
                part = self._head(f"{name}_aux_norm", f"{name}_aux_conv", 1e-6, x, h)
                image = part if image is None else part + fir_upsample(image, self.fir_kernel)
        return image if image is not None else self._head(f"{name}_aux_norm", f"{name}_aux_conv", 1e-6, x, h)

    def _embed(self, labels: PerImage, classes: Classes | None, augment_labels: Vectors | None) -> Vectors:
        size = self.nf * self.channel_mult_noise
        if self.embedding_type == "fourier":
            embedding = FourierEmbedding(size, name="map_noise")(labels)
        else:
            embedding = positional_embedding(labels, size)
        if self.num_classes:
            rows = self._class_rows(embedding, classes) * float(np.sqrt(self.num_classes))
            embedding += _dense(size, "map_label")(rows)
        embedding = self._add_augmentation(embedding, augment_labels)
        width = self.channel_mult_emb * self.nf
        embedding = nn.silu(_dense(width, "map_layer0")(embedding))
        return nn.silu(_dense(width, "map_layer1")(embedding))

    def _block(self, name: str, features: int, attention: bool = False, **resampling: Any) -> UNetBlock:
        return UNetBlock(
            features,
            heads=int(attention),
            fir_kernel=tuple(self.fir_kernel),
            adaptive=False,
            project=True,
            skip_scale=HALF,
            epsilon=1e-6,
            dropout=self.dropout,
            dtype=self.dtype,
            name=name,
            **resampling,
        )

    def _join_input(self, name: str, pyramid: OtherMaps, h: Maps) -> tuple[OtherMaps, Maps]:
        if self.progressive_input == "input_skip":
            pyramid = fir_downsample(pyramid, self.fir_kernel)
            return pyramid, h + Conv(h.shape[-1], 1, dtype=self.dtype, name=f"{name}_aux_skip")(pyramid)
        if self.progressive_input == "residual":
            down = Conv(
                h.shape[-1],
                down=True,
                fir_kernel=tuple(self.fir_kernel),
                fused=True,
                dtype=self.dtype,
                name=f"{name}_aux_residual",
            )
            h = (h + down(pyramid)) * HALF
            return h, h
        return pyramid, h


class DhariwalUNet(_UNet):
    """ADM in EDM's form: x [b, h, w, c], labels c_noise [b] -> [b, h, w, c]; 1 network call.

    Attention has heads of `num_head_channels`: none at widths below that, as published.
    """

    nf: int = 192
    ch_mult: Sequence[float] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attn_resolutions: Sequence[int] = (32, 16, 8)
    num_head_channels: int = 64

    @nn.compact
    def __call__(
        self,
        x: Image,
        labels: NoiseLabels,
        classes: Classes | None = None,
        augment_labels: Vectors | None = None,
        train: bool = False,
    ) -> OtherChannels:
        embedding = self._embed(labels.astype(x.dtype), classes, augment_labels)
        first = int(self.ch_mult[0] * self.nf)
        *_, (_, h) = self._walk(x, embedding, first, False, train)
        return self._head("out_norm", "out_conv", 1e-5, x, h)

    def _embed(self, labels: PerImage, classes: Classes | None, augment_labels: Vectors | None) -> Vectors:
        embedding = self._add_augmentation(timestep_embedding(labels, self.nf), augment_labels)
        width = self.channel_mult_emb * self.nf
        embedding = nn.silu(_dense(width, "map_layer0")(embedding))
        embedding = _dense(width, "map_layer1")(embedding)
        if self.num_classes:
            embedding += _dense(width, "map_label", bias=False)(self._class_rows(embedding, classes))
        return nn.silu(embedding)

    def _block(self, name: str, features: int, attention: bool = False, **resampling: Any) -> UNetBlock:
        heads = features // self.num_head_channels if attention else 0
        return UNetBlock(features, heads, dropout=self.dropout, dtype=self.dtype, name=name, **resampling)
