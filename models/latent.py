"""The codec of a latent model in the units of its diffusion, and large latents decoded tile by tile.

Diffusion sees latents of about unit variance, x = (z - shift) scale_factor, where z is what the autoencoder makes of an
image. Samplers take x for their image and know of nothing else.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, OtherMaps, PerImage, Table

Latent = OtherMaps  # [b, h/f, w/f, c]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params",),
    meta_fields=("encoder", "decoder", "factor", "image_channels", "scale_factor", "shift", "tile", "overlap"),
)
@dataclasses.dataclass(frozen=True)
class Codec:
    """An autoencoder with its parameters; a pytree.

    Attributes:
      params: of the autoencoder.
      encoder: `(params, images [b, h, w, 3] in [-1, 1]) -> z [b, h/f, w/f, c]`, the mean where there is a spread.
      decoder: `(params, z) -> images`, about [-1, 1].
      factor: pixels along one side of a latent's place, f.
      image_channels: of an image.
      scale_factor, shift: x = (z - shift) scale_factor.
      tile: latents with a side above this are decoded in tiles of it, one after the other; 0: never.
      overlap: of neighbouring tiles, in places of the latent; there one fades into the other.
    """

    params: Any
    encoder: Callable[[Any, Image], Latent]
    decoder: Callable[[Any, Latent], Image]
    factor: int = 8
    image_channels: int = 3
    scale_factor: float = 1.0
    shift: float = 0.0
    tile: int = 0
    overlap: int = 0

    def __post_init__(self):
        if self.tile and not 0 <= self.overlap <= self.tile // 2:
            raise ValueError(
                f"config.latent.overlap={self.overlap} must lie between 0 and half of config.latent.tile={self.tile}."
            )

    def to_latents(self, images: Image) -> Latent:
        """What diffusion sees of images [b, h, w, 3] in [-1, 1]; for use inside a program."""
        return (self.encoder(self.params, images) - self.shift) * self.scale_factor

    def to_images(self, latents: Latent) -> Image:
        """The images [b, h, w, 3], about [-1, 1], of what diffusion drew; for use inside a program, never in tiles."""
        return self.decoder(self.params, latents / self.scale_factor + self.shift)

    def encode(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """`to_latents` as NumPy arrays, one image after the other: memory is that of one."""
        return np.concatenate([np.asarray(_to_latents(self, image)) for image in _each(images)])

    def decode(self, latents: np.ndarray | jax.Array) -> np.ndarray:
        """`to_images` as NumPy arrays, one image after the other, large ones in tiles."""
        return np.concatenate([self._decode_one(latent) for latent in _each(latents)])

    def _decode_one(self, latent: Latent) -> np.ndarray:
        def decode(part: Any) -> np.ndarray:
            return np.asarray(_to_images(self, jnp.asarray(part)))

        if self.tiles(latent.shape[1:]) == 1:
            return decode(latent)
        return in_tiles(decode, np.asarray(latent), self.tile, self.overlap, self.factor)

    def tiles(self, shape: tuple[int, ...]) -> int:
        """In how many tiles latents of `shape` (h, w, c) are decoded."""
        return math.prod(len(starts(side, self.tile or side, self.overlap)) for side in shape[:2])

    def decoded_at_once(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(h, w) of the latents in one call of the decoder."""
        return tuple(min(side, self.tile or side) for side in shape[:2])  # type: ignore[return-value]  # two sides


@functools.partial(jax.tree_util.register_dataclass, data_fields=("codec", "log_prob"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class OfImage:
    """What can be said of an image, said of its latent: log_prob(decoded x0, s), [b]; a pytree."""

    codec: Codec
    log_prob: Any

    def __call__(self, x0: Latent, s: Any) -> PerImage:
        return self.log_prob(self.codec.to_images(x0), s)


def _each(images: np.ndarray | jax.Array) -> list[jax.Array]:
    return [jnp.asarray(images[n : n + 1], jnp.float32) for n in range(len(images))]


@jax.jit
def _to_latents(codec: Codec, images: Image) -> Latent:
    return codec.to_latents(images)


@jax.jit
def _to_images(codec: Codec, latents: Latent) -> Image:
    return codec.to_images(latents)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover `side` places, evenly spread, neighbours sharing at least `overlap` places."""
    if side <= tile:
        return [0]
    count = -(-(side - overlap) // (tile - overlap))
    return [round(position) for position in np.linspace(0, side - tile, count)]


def in_tiles(
    decode: Callable[[np.ndarray], np.ndarray], latents: np.ndarray, tile: int, overlap: int, factor: int
) -> np.ndarray:
    """The images of latents [b, h, w, c] decoded tile by tile: `decode(part) -> [b, f h', f w', 3]`.

    A tile's weight falls to its inner borders over the overlap; at each pixel weights are divided by their sum. A
    decoder that looks no further than half of the overlap gives what it gives of the whole. One with attention or
    normalisation over the picture, as published ones have, sees less context in a tile: brightness may differ a little.
    """
    h, w = latents.shape[1:3]
    rows, columns = starts(h, tile, overlap), starts(w, tile, overlap)
    total: Any = 0
    for top in rows:
        for left in columns:
            part = decode(latents[:, top : top + tile, left : left + tile])
            if np.ndim(total) == 0:
                total = np.zeros((len(part), h * factor, w * factor, part.shape[-1]), np.float32)
            down = ramp(top, h, tile, rows, overlap, factor)
            across = ramp(left, w, tile, columns, overlap, factor)
            window = slice(top * factor, (top + tile) * factor), slice(left * factor, (left + tile) * factor)
            total[:, window[0], window[1]] += down[None, :, None, None] * across[None, None, :, None] * part
    return total


def ramp(start: int, side: int, tile: int, places: list[int], overlap: int, factor: int) -> Table:
    """The share of the tile at `start` in each of its pixels along one axis; all tiles' shares add up to 1."""

    def trapezoid(start: int) -> np.ndarray:
        x = (np.arange(side * factor) + 0.5) / factor
        inside = (x > start) & (x < min(start + tile, side))
        # From 0 at the outer quarter of the overlap to 1 at the inner one: the border of a tile is never seen.
        fade, quarter = max(overlap / 2, 1e-9), overlap / 4
        up = np.clip((x - start - quarter) / fade, 0, 1) if start > 0 else np.ones_like(x)
        down = np.clip((start + tile - quarter - x) / fade, 0, 1) if start + tile < side else np.ones_like(x)
        return np.where(inside, np.maximum(np.minimum(up, down), 1e-6), 0)

    own, everyone = trapezoid(start), sum(trapezoid(place) for place in places)
    return (own / everyone)[start * factor : min(start + tile, side) * factor]
