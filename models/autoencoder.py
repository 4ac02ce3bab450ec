"""The codecs of latent diffusion: images [b, h, w, 3] in [-1, 1] to latents [b, h/f, w/f, c] and back.

`AutoencoderKL` encodes an image as a Gaussian over latents, `VQModel` as a point that the decoder replaces by the
nearest entries of a codebook (Rombach et al. 2022; Esser et al. 2021). diffusers and CompVis have one network under two
sets of names; modules are named as in diffusers' state dicts with "_" for "." (`models.unet2d`). f is 2 to the number
of levels less one. What diffusion sees is the latent times config.latent.scale_factor.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from array_types import Image, Maps, OtherChannels, OtherMaps
from models.layers import GroupNorm
from models.resample import naive_upsample
from models.unet2d import ACTIVATIONS, Attention, ResnetBlock2D

EPSILON = 1e-6
DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # name -> attention after each block
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


class _Half(nn.Module):
    """What the encoder and the decoder share: residual blocks without an embedding, attention with one head."""

    out_channels: int
    block_out_channels: Sequence[int]
    layers: int
    attention: Sequence[bool]  # of each level, in the order in which they are passed
    norm_num_groups: int
    act_fn: str
    mid_attention: bool
    dtype: Any

    def _block(self, name: str, width: int) -> ResnetBlock2D:
        groups = self.norm_num_groups
        return ResnetBlock2D(width, groups, groups, EPSILON, self.act_fn, dtype=self.dtype, name=name)

    def _attention(self, name: str) -> Attention:
        return Attention(1, self.norm_num_groups, EPSILON, dtype=self.dtype, name=name)

    def _level(self, name: str, h: Maps, width: int, attends: bool) -> OtherChannels:
        for i in range(self.layers):
            h = self._block(f"{name}_resnets_{i}", width)(h)
            h = self._attention(f"{name}_attentions_{i}")(h) if attends else h
        return h

    def _middle(self, h: Maps) -> Maps:
        width = h.shape[-1]
        h = self._block("mid_block_resnets_0", width)(h)
        h = self._attention("mid_block_attentions_0")(h) if self.mid_attention else h
        return self._block("mid_block_resnets_1", width)(h)

    def _head(self, h: Maps, dtype: Any) -> OtherChannels:
        h = nn.silu(GroupNorm(self.norm_num_groups, EPSILON, name="conv_norm_out")(h)).astype(dtype)
        return nn.Conv(self.out_channels, (3, 3), name="conv_out")(h)


class Encoder(_Half):
    """[b, h, w, c] -> [b, h/f, w/f, out_channels]."""

    @nn.compact
    def __call__(self, x: Image) -> OtherMaps:
        h = nn.Conv(self.block_out_channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        for level, (width, attends) in enumerate(zip(self.block_out_channels, self.attention, strict=True)):
            name = f"down_blocks_{level}"
            h = self._level(name, h, width, attends)
            if level < len(self.block_out_channels) - 1:
                # One row and one column are added right and below only.
                padding = ((0, 1), (0, 1))
                h = nn.Conv(width, (3, 3), 2, padding, dtype=self.dtype, name=f"{name}_downsamplers_0_conv")(h)
        return self._head(self._middle(h), x.dtype)


class Decoder(_Half):
    """[b, h/f, w/f, c] -> [b, h, w, out_channels]."""

    @nn.compact
    def __call__(self, z: Maps) -> OtherMaps:
        widths = tuple(reversed(self.block_out_channels))
        h = nn.Conv(widths[0], (3, 3), dtype=self.dtype, name="conv_in")(z)
        h = self._middle(h)
        for level, (width, attends) in enumerate(zip(widths, self.attention, strict=True)):
            name = f"up_blocks_{level}"
            h = self._level(name, h, width, attends)
            if level < len(widths) - 1:
                conv = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"{name}_upsamplers_0_conv")
                h = conv(naive_upsample(h))
        return self._head(h, z.dtype)


class _Autoencoder(nn.Module):
    """The settings of both codecs, under the names of config.latent. `dtype` is the compute type between the first and
    the last convolution."""

    image_channels: int = 3
    channels: int = 4
    block_out_channels: Sequence[int] = (128, 256, 512, 512)
    layers_per_block: int = 2
    down_block_types: Sequence[str] = ()
    up_block_types: Sequence[str] = ()
    norm_num_groups: int = 32
    act_fn: str = "silu"
    mid_attention: bool = True
    dtype: Any = None

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            named = getattr(self, key)
            if unknown := sorted(set(named) - set(known)):
                raise ValueError(f"config.latent.{key} has {unknown}, which is unknown; choose from {sorted(known)}.")
            if named and len(named) != levels:
                raise ValueError(f"config.latent.{key} has {len(named)} entries for {levels} levels.")
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"config.latent.act_fn={self.act_fn!r} is unknown; choose one of {tuple(ACTIVATIONS)}.")
        if indivisible := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            raise ValueError(
                f"config.latent.block_out_channels has {indivisible}, which config.latent.norm_num_groups="
                f"{self.norm_num_groups} does not divide."
            )
        super().__post_init__()

    @property
    def factor(self) -> int:
        """Pixels of an image along one side of a latent's pixel."""
        return 2 ** (len(self.block_out_channels) - 1)

    def _halves(self, encoded: int) -> tuple[Encoder, Decoder]:
        """The encoder into `encoded` channels and the decoder, which has one block a level more."""
        levels = len(self.block_out_channels)
        down = [DOWN_BLOCKS[kind] for kind in self.down_block_types] or [False] * levels
        up = [UP_BLOCKS[kind] for kind in self.up_block_types] or [False] * levels
        shared = (self.norm_num_groups, self.act_fn, self.mid_attention, self.dtype)
        widths, layers = self.block_out_channels, self.layers_per_block
        encoder = Encoder(encoded, widths, layers, tuple(down), *shared)
        return encoder, Decoder(self.image_channels, widths, layers + 1, tuple(up), *shared)


class AutoencoderKL(_Autoencoder):
    """A Gaussian over latents for each image: `encode` gives its moments, `decode` an image for a latent."""

    quant_conv: bool = True
    post_quant_conv: bool = True

    def setup(self):
        self.encoder, self.decoder = self._halves(2 * self.channels)
        if self.quant_conv:
            self.quant = nn.Conv(2 * self.channels, (1, 1), name="quant_conv")
        if self.post_quant_conv:
            self.post_quant = nn.Conv(self.channels, (1, 1), name="post_quant_conv")

    def encode(self, x: Image) -> OtherMaps:
        """Images [b, h, w, 3] in [-1, 1] -> moments [b, h/f, w/f, 2c]: the mean, and log variance clipped to
        [-30, 20]."""
        moments = self.encoder(x)
        moments = self.quant(moments) if self.quant_conv else moments
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return jnp.concatenate([mean, jnp.clip(logvar, -30, 20)], axis=-1)

    def decode(self, z: Maps) -> OtherMaps:
        """Latents [b, h/f, w/f, c] -> images [b, h, w, 3], about [-1, 1]."""
        return self.decoder(self.post_quant(z) if self.post_quant_conv else z)

    def __call__(self, x: Image) -> Image:
        """Images through the mean of their latents and back."""
        return self.decode(self.encode(x)[..., : self.channels])


class VQModel(_Autoencoder):
    """A point in the latent space for each image; the decoder sees the nearest entry of the codebook at each place."""

    num_vq_embeddings: int = 8192
    vq_embed_dim: int = 0

    def setup(self):
        width = self.vq_embed_dim or self.channels
        self.encoder, self.decoder = self._halves(self.channels)
        self.quant_conv = nn.Conv(width, (1, 1))
        self.post_quant_conv = nn.Conv(self.channels, (1, 1))
        self.quantize_embedding = nn.Embed(self.num_vq_embeddings, width)

    def encode(self, x: Image) -> OtherMaps:
        """Images [b, h, w, 3] in [-1, 1] -> latents [b, h/f, w/f, vq_embed_dim], not quantised."""
        return self.quant_conv(self.encoder(x))

    def quantise(self, z: Maps) -> Maps:
        """The entries of the codebook nearest to z [b, h, w, d]; gradients pass as if it were z itself."""
        codebook = self.quantize_embedding.embedding.astype(z.dtype)
        lengths = jnp.square(codebook).sum(axis=1)

        def nearest(image: jax.Array) -> jax.Array:  # one image at a time: h w entries numbers each
            return jnp.argmin(lengths[None, None] - 2 * jnp.einsum("hwd,nd->hwn", image, codebook), axis=-1)

        return z + jax.lax.stop_gradient(codebook[jax.lax.map(nearest, z)] - z)

    def decode(self, z: Maps, quantise: bool = True) -> OtherMaps:
        """Latents [b, h/f, w/f, vq_embed_dim] -> images [b, h, w, 3], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(self.quantise(z) if quantise else z))

    def __call__(self, x: Image) -> Image:
        """Images through the codebook and back."""
        return self.decode(self.encode(x))


def sample_moments(moments: OtherChannels, noise: Maps) -> Maps:
    """A latent [b, h, w, c] of the Gaussians with these moments [b, h, w, 2c], moved by standard noise [b, h, w, c]."""
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return mean + jnp.exp(0.5 * logvar) * noise
