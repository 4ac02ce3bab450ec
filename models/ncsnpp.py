"""NCSN++ and DDPM++ (Song et al. 2021, appendix H): one U-Net with every switch a published checkpoint uses.

The network sees noisy data x in the model's data range and a label: the noise scale sigma (Fourier embedding, which
takes its logarithm), 999 t, or an integer level (positional embedding). Modules are called in the order of the
published PyTorch `all_modules` list, which is how its numbered weights find their names (`models.structure`).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from array_types import Image, Maps, NoiseLabels, OtherChannels, OtherMaps, OtherSize, Vectors
from models import layers
from models.blocks import AttnBlockpp, Combine, ResnetBlockBigGANpp, ResnetBlockDDPMpp
from models.layers import Downsample, GaussianFourierProjection, GroupNorm, Upsample, conv3x3, dense, groups_of
from models.temporal import create_mixing

RESBLOCK_TYPES = ("biggan", "ddpm")
EMBEDDING_TYPES = ("fourier", "positional")
PROGRESSIVE = ("none", "output_skip", "residual")
PROGRESSIVE_INPUT = ("none", "input_skip", "residual")
COMBINE = ("sum", "cat")


class NCSNpp(nn.Module):
    """x [b, h, w, c], labels [b] -> output [b, h, w, heads c]; 1 network call.

    Attributes carry the names of the published configs. `discrete_sigmas` is the training ladder, largest first, that
    `scale_by_sigma` divides by when labels are integer levels. `dtype` is the compute type of convolutions. With
    `mixing` (DSNO) the batch holds `num_times` copies of each image in a row, which exchange information after each
    block; the parameters of that are new names beside those of the network without it.
    """

    nf: int = 128
    ch_mult: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    resamp_with_conv: bool = True
    conditional: bool = True
    fir: bool = True
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: str = "biggan"
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    init_scale: float = 0.0
    scale_by_sigma: bool = True
    dropout: float = 0.1
    nonlinearity: str = "swish"
    heads: int = 1  # images it puts out: 2 where it predicts x0 and eps
    centered: bool = False
    discrete_sigmas: Sequence[float] = ()
    mixing: str = "none"  # between the time points of a trajectory (models/temporal.py)
    num_times: int = 1
    modes: int = 2
    dtype: Any = None

    def __post_init__(self):
        for key, choices in (
            ("resblock_type", RESBLOCK_TYPES),
            ("embedding_type", EMBEDDING_TYPES),
            ("progressive", PROGRESSIVE),
            ("progressive_input", PROGRESSIVE_INPUT),
            ("progressive_combine", COMBINE),
        ):
            if getattr(self, key) not in choices:
                raise ValueError(f"config.model.{key}={getattr(self, key)!r} is unknown; choose one of {choices}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Image, labels: NoiseLabels, train: bool = False) -> OtherChannels:
        act = layers.activation(self.nonlinearity)
        embedding, sigmas = self._embed(labels, act)
        x = x if self.centered else 2 * x - 1
        channels = self.heads * x.shape[-1]
        pyramid = x

        # At sigma_max = 1348 the input does not fit bfloat16's mantissa: the first convolution stays float32.
        h = conv3x3(self.nf)(x)
        h = h if self.dtype is None else h.astype(self.dtype)
        skips = [h]
        for level, multiplier in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = self._block(self.nf * multiplier)(h, embedding, train)
                if h.shape[1] in self.attn_resolutions:
                    h = self._attention()(h)
                h = self._mix_times(h)
                skips.append(h)
            if level < len(self.ch_mult) - 1:
                h = self._downsample(h, embedding, train)
                pyramid, h = self._join_input(pyramid, h)
                skips.append(h)

        width = h.shape[-1]
        h = self._block(width)(h, embedding, train)
        h = self._mix_times(self._attention()(h))
        h = self._block(width)(h, embedding, train)

        output: Any = None
        for level, multiplier in reversed(list(enumerate(self.ch_mult))):
            for block in range(self.num_res_blocks + 1):
                h = self._block(self.nf * multiplier)(jnp.concatenate([h, skips.pop()], axis=-1), embedding, train)
                if block == self.num_res_blocks and h.shape[1] in self.attn_resolutions:
                    h = self._attention()(h)
                h = self._mix_times(h)
            output, h = self._join_output(output, h, channels, act)
            if level > 0:
                h = self._upsample(h, embedding, train)

        if self.progressive == "output_skip":
            h = output
        else:
            h = self._to_image(h, channels, act)
        h = h.astype(x.dtype)
        return h / sigmas.astype(h.dtype)[:, None, None, None] if self.scale_by_sigma else h

    def _embed(self, labels: NoiseLabels, act) -> tuple[Vectors | None, NoiseLabels]:
        """The time embedding [b, 4 nf] and the noise scales [b] that `scale_by_sigma` divides by."""
        if self.embedding_type == "fourier":
            sigmas = labels
            features = GaussianFourierProjection(self.nf, self.fourier_scale)(jnp.log(labels))
        else:
            if self.scale_by_sigma:
                sigmas = jnp.asarray(np.asarray(self.discrete_sigmas))[labels.astype(jnp.int32)]
            else:
                sigmas = labels
            features = layers.positional_embedding(labels, self.nf)
        if not self.conditional:
            return None, sigmas
        hidden = act(dense(4 * self.nf)(features))
        return dense(4 * self.nf)(hidden), sigmas

    def _to_image(self, h: Maps, channels: int, act) -> OtherChannels:
        """Normalisation and the output convolution, in at least float32."""
        h = act(GroupNorm(groups_of(h.shape[-1]))(h)).astype(jnp.promote_types(h.dtype, jnp.float32))
        return conv3x3(channels, self.init_scale)(h)

    def _block(self, features: int, **kwargs) -> nn.Module:
        common = dict(
            features=features,
            act=self.nonlinearity,
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            dtype=self.dtype,
        )
        if self.resblock_type == "ddpm":
            return ResnetBlockDDPMpp(**common)
        return ResnetBlockBigGANpp(**common, fir=self.fir, fir_kernel=tuple(self.fir_kernel), **kwargs)

    def _attention(self) -> nn.Module:
        return AttnBlockpp(self.skip_rescale, self.init_scale, self.dtype)

    def _mix_times(self, h: Maps) -> Maps:
        layer = create_mixing(self.mixing, self.num_times, self.modes)
        return h if layer is None else layer(h)

    def _resampler(self, kind: type, features: int = 0, with_conv: bool = False, pyramid: bool = False) -> nn.Module:
        return kind(features, with_conv, self.fir, tuple(self.fir_kernel), pyramid, self.dtype)

    def _downsample(self, h: Maps, embedding: Vectors | None, train: bool) -> OtherSize:
        if self.resblock_type == "ddpm":
            return self._resampler(Downsample, with_conv=self.resamp_with_conv)(h)
        return self._block(h.shape[-1], down=True)(h, embedding, train)

    def _upsample(self, h: Maps, embedding: Vectors | None, train: bool) -> OtherSize:
        if self.resblock_type == "ddpm":
            return self._resampler(Upsample, with_conv=self.resamp_with_conv)(h)
        return self._block(h.shape[-1], up=True)(h, embedding, train)

    def _merge(self, pyramid: Maps, h: Maps) -> Maps:
        return (pyramid + h) * float(np.sqrt(0.5)) if self.skip_rescale else pyramid + h

    def _join_input(self, pyramid: OtherMaps, h: Maps) -> tuple[OtherMaps, OtherChannels]:
        """Feeds the downsampled image into the features: (pyramid, features) of the next level."""
        if self.progressive_input == "input_skip":
            pyramid = self._resampler(Downsample, pyramid=True)(pyramid)
            return pyramid, Combine(self.progressive_combine, self.dtype)(pyramid, h)
        if self.progressive_input == "residual":
            h = self._merge(self._resampler(Downsample, h.shape[-1], with_conv=True)(pyramid), h)
            return h, h
        return pyramid, h

    def _join_output(self, output: OtherMaps | None, h: Maps, channels: int, act) -> tuple[Any, Maps]:
        """Grows the output pyramid by this level: (output so far, features to go on with)."""
        if self.progressive == "output_skip":
            upsampled = None if output is None else self._resampler(Upsample, pyramid=True)(output)
            image = self._to_image(h, channels, act)
            return (image if upsampled is None else upsampled + image), h
        if self.progressive == "residual":
            if output is None:
                output = conv3x3(h.shape[-1], dtype=self.dtype)(act(GroupNorm(groups_of(h.shape[-1]))(h)))
                return output, h
            h = self._merge(self._resampler(Upsample, h.shape[-1], with_conv=True)(output), h)
            return h, h
        return None, h
