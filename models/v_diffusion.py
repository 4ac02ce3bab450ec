"""The U-Net of progressive distillation (Salimans and Ho 2022), under the names of its published Flax checkpoints.

It is the teacher of the distilled students and of DSNO, whose network is the same one with temporal layers between its
blocks. Data in [-1, 1]; it is told the noise scale s = sigma/alpha of a variance-preserving process, from which it
makes its input, by default the angle 2/pi arctan(s) in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Labels, Maps, NoiseLabels, OtherChannels, OtherMaps, PerImage, Scalar, Vectors
from models.layers import GroupNorm, attend_heads, positional_embedding
from models.resample import naive_downsample, naive_upsample
from models.temporal import create_mixing

LOGSNR_INPUTS = ("inv_cos", "linear", "sigmoid")
HEADS = ("single", "both")
RESAMPLE = {"up": naive_upsample, "down": naive_downsample}


def _conv(features: int, name: str, dtype: Any = None, zero: bool = False) -> nn.Conv:
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(features, (3, 3), kernel_init=init, dtype=dtype, name=name)


def _norm(name: str) -> GroupNorm:
    return GroupNorm(32, name=name)


class ResnetBlock(nn.Module):
    """Residual block; the embedding scales and shifts the second normalisation."""

    features: int
    resample: str = ""  # "up" or "down", on both branches
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps, embedding: Vectors, train: bool = False) -> OtherMaps:
        h = nn.silu(_norm("norm1")(x))
        if self.resample:
            h, x = RESAMPLE[self.resample](h), RESAMPLE[self.resample](x)
        h = _conv(self.features, "conv1", self.dtype)(h)
        projected = nn.Dense(2 * self.features, name="temb_proj")(nn.silu(embedding)).astype(h.dtype)
        scale, shift = jnp.split(projected[:, None, None], 2, axis=-1)
        h = nn.silu(_norm("norm2")(h) * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = _conv(self.features, "conv2", self.dtype, zero=True)(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Multi-head self-attention over all pixels, kernels [c, heads, d] and [heads, d, c], with a residual."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        b, height, width, c = x.shape
        h = _norm("norm")(x).reshape(b, height * width, c)
        heads = (self.num_heads, c // self.num_heads)
        qkv = [nn.DenseGeneral(heads, dtype=self.dtype, name=name)(h).reshape(h.shape) for name in "qkv"]
        h = attend_heads(jnp.concatenate(qkv, axis=-1), self.num_heads, "new").reshape(b, height * width, *heads)
        out = nn.DenseGeneral(c, (-2, -1), kernel_init=nn.initializers.zeros, dtype=self.dtype, name="proj_out")(h)
        return x + out.reshape(x.shape)


class VDiffusionUNet(nn.Module):
    """x [b, h, w, c], labels s [b], classes [b] of integers -> [b, h, w, c]; 1 network call.

    Attributes beyond those of NCSN++:
      emb_ch: width of the embedding.
      num_heads, num_head_channels: attention heads, and channels of a head (-1 follows num_heads).
      head: "single", whose meaning config.model.predicts gives, or "both": the network has an x0 and an eps head, and
        sigma^2 x0 + alpha (x - sigma eps), the mean of their two estimates weighted by noise and signal, comes out.
      logsnr_input: what is embedded of log-SNR: "inv_cos" (clipped to [-20, 20]), "linear" ((logsnr + 10) / 20) or
        "sigmoid".
      guidance_embedding: it is told a guidance scale too, `guidance` [b]: a student of a guided teacher (Meng et al.
        2023, "On distillation of guided diffusion models"). That layer begins as nothing.
      mixing, num_times, modes: temporal layers (DSNO), as in `models.ncsnpp.NCSNpp`.
    """

    nf: int = 256
    ch_mult: Sequence[int] = (1, 1, 1)
    num_res_blocks: int = 3
    attn_resolutions: Sequence[int] = (8, 16)
    emb_ch: int = 1024
    num_heads: int = 1
    num_head_channels: int = -1
    num_classes: int = 0
    head: str = "single"
    logsnr_input: str = "inv_cos"
    dropout: float = 0.0
    guidance_embedding: bool = False
    mixing: str = "none"
    num_times: int = 1
    modes: int = 2
    dtype: Any = None

    def __post_init__(self):
        for key, choices in (("logsnr_input", LOGSNR_INPUTS), ("head", HEADS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"config.model.{key}={getattr(self, key)!r} is unknown; choose one of {choices}.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Image,
        labels: NoiseLabels,
        classes: Labels | None = None,
        guidance: PerImage | None = None,
        train: bool = False,
    ) -> Image:
        embedding = self._embed(labels.astype(x.dtype), classes) + self._embed_guidance(guidance, x)
        last = len(self.ch_mult) - 1

        def block(name: str, h: Maps, features: int, resample: str = "") -> OtherMaps:
            return ResnetBlock(features, resample, self.dropout, self.dtype, name=name)(h, embedding, train)

        h = _conv(self.nf, "conv_in")(x)
        h = h if self.dtype is None else h.astype(self.dtype)
        skips = [h]
        for level, multiplier in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                h = block(f"down_{level}.block_{i}", h, self.nf * multiplier)
                h = self._attend(f"down_{level}.attn_{i}", h)
                h = self._mix_times(f"down_{level}.time_conv{i}", h)
                skips.append(h)
            if level < last:
                h = block(f"down_{level}.downsample", h, h.shape[-1], "down")
                skips.append(h)

        width = h.shape[-1]
        h = block("mid.block_1", h, width)
        h = self._attend("mid.attn_1", h, always=True)
        h = self._mix_times("mid.time_conv", h)
        h = block("mid.block_2", h, width)

        for level, multiplier in reversed(list(enumerate(self.ch_mult))):
            for i in range(self.num_res_blocks + 1):
                h = block(f"up_{level}.block_{i}", jnp.concatenate([h, skips.pop()], axis=-1), self.nf * multiplier)
                h = self._attend(f"up_{level}.attn_{i}", h)
                h = self._mix_times(f"up_{level}.time_conv{i}", h)
            if level > 0:
                h = block(f"up_{level}.upsample", h, h.shape[-1], "up")

        h = nn.silu(_norm("norm_out")(h)).astype(x.dtype)
        h = _conv(x.shape[-1] * (2 if self.head == "both" else 1), "conv_out", zero=True)(h)
        return h if self.head == "single" else merge_heads(h, x, labels)

    def _embed(self, labels: PerImage, classes: Labels | None) -> Vectors:
        """[b, emb_ch]: of the noise scale, plus that of the classes where the network has them."""
        level = noise_input(self.logsnr_input, labels)
        hidden = nn.silu(nn.Dense(self.emb_ch, name="dense0")(positional_embedding(1000 * level, self.nf)))
        embedding = nn.Dense(self.emb_ch, name="dense1")(hidden)
        if not self.num_classes:
            return embedding
        if classes is None and not self.is_initializing():
            raise ValueError(
                f"This network is conditional on {self.num_classes} classes and was given none; name them with "
                "--labels 3,7 (in Python: denoiser.given(classes=...))."
            )
        classes = jnp.zeros(labels.shape, jnp.int32) if classes is None else classes
        rows = jax.nn.one_hot(classes, self.num_classes, dtype=embedding.dtype)
        return embedding + nn.Dense(self.emb_ch, name="class_emb")(rows)

    def _embed_guidance(self, guidance: PerImage | None, x: Image) -> Vectors | Scalar:
        """[b, emb_ch] of the guidance scale, or a zero."""
        if not self.guidance_embedding:
            return jnp.zeros((), x.dtype)
        if guidance is None and not self.is_initializing():
            raise ValueError("This student is told a guidance scale and was given none; set config.guidance.cfg_scale.")
        scale = jnp.ones(len(x), x.dtype) if guidance is None else guidance.astype(x.dtype)
        features = positional_embedding(100 * scale, self.nf)  # scales of 0 to 10 as far apart as noise levels
        return nn.Dense(self.emb_ch, kernel_init=nn.initializers.zeros, name="guidance_emb")(features)

    def _attend(self, name: str, h: Maps, always: bool = False) -> Maps:
        if not always and h.shape[1] not in self.attn_resolutions:
            return h
        heads = self.num_heads if self.num_head_channels < 1 else h.shape[-1] // self.num_head_channels
        return AttnBlock(heads, self.dtype, name=name)(h)

    def _mix_times(self, name: str, h: Maps) -> Maps:
        layer = create_mixing(self.mixing, self.num_times, self.modes)
        return h if layer is None else layer.copy(name=name)(h)


def noise_input(kind: str, s: PerImage) -> PerImage:
    """What is embedded of the noise scale s [b], log-SNR being -2 log s; see `VDiffusionUNet.logsnr_input`."""
    logsnr = -2 * jnp.log(s)
    if kind == "inv_cos":
        return jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20, 20))) * (2 / np.pi)
    return (logsnr + 10) / 20 if kind == "linear" else nn.sigmoid(logsnr)


def merge_heads(output: OtherChannels, x: Image, s: PerImage) -> Image:
    """x0 from an x0 head and an eps head behind it, weighted by sigma^2 and alpha^2 = 1 / (1 + s^2)."""
    x0, eps = jnp.split(output, 2, axis=-1)
    alpha = jax.lax.rsqrt(1 + s.astype(x.dtype) ** 2)[:, None, None, None]
    sigma = s.astype(x.dtype)[:, None, None, None] * alpha
    return sigma**2 * x0 + alpha * (x - sigma * eps)
