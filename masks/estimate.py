"""Masks from images: how strong each frequency, and each pixel, is on average.

Over images x in [0, 1] with F the un-normalised 2-D Fourier transform of each channel, the published formulas (the
program of Ma et al. 2022) are

  freq = log(1 + mean |F x|^2),    space = mean x^2,

without subtraction of the mean. 200 images suffice for the published use. One pass collects plain sums in float64, from
which every variant follows; images are streamed and never held together.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from data.pipeline import OnDemandImages
from data.sources import Source

CHUNK = 64  # images transformed at once


class Moments(NamedTuple):
    """Sums over n images in [0, 1]; float64, [h, w, c]."""

    n: int
    total: np.ndarray  # of x
    square: np.ndarray  # of x^2
    power: np.ndarray  # of |F x|^2, full plane


class Masks(NamedTuple):
    """Raw masks, float64 [h, w, c]."""

    freq: np.ndarray
    space: np.ndarray


def full_plane(half: np.ndarray, width: int) -> np.ndarray:
    """The even function [h, w, c] whose half-plane [h, w//2 + 1, c] is given."""
    mirrored = np.roll(half[::-1], 1, axis=0)[:, 1 : (width + 1) // 2]
    return np.concatenate([half, mirrored[:, ::-1]], axis=1)


def collect(chunks: Iterable[np.ndarray], bounded: bool = True) -> Moments:
    """The sums over all images of all chunks, each [n, h, w, c], uint8 or floats in [0, 1].

    Raises ValueError if there is no image, or if floats leave [0, 1] (images in the model's range [-1, 1], say) where
    they are `bounded`; latents are not.
    """
    sums = None
    for chunk in chunks:
        if chunk.dtype == np.uint8:
            images = chunk / 255
        else:
            images = np.asarray(chunk, np.float64)
            if bounded and (images.min() < -1e-3 or images.max() > 1 + 1e-3):
                raise ValueError(
                    f"Masks are defined on images in [0, 1]; these span [{images.min():.3g}, {images.max():.3g}]. "
                    "Rescale and clip them first."
                )
        spectrum = np.fft.rfft2(images, axes=(1, 2))
        power = (spectrum.real**2 + spectrum.imag**2).sum(axis=0)
        parts = (len(images), images.sum(axis=0), (images**2).sum(axis=0), full_plane(power, images.shape[2]))
        sums = parts if sums is None else tuple(a + b for a, b in zip(sums, parts, strict=True))
    if sums is None:
        raise ValueError("No images to estimate masks from; set config.data.source to a folder, zip or npz of images.")
    return Moments(*sums)


def stream(source: Source, size: int, channels: int, limit: int = 0) -> Iterator[np.ndarray]:
    """Chunks of the source's images, uint8 [n, size, size, channels]: all, or `limit` of them drawn at random.

    The draw is the same every time. (The first so many would all be of one class in a set sorted by class.)
    """
    images = OnDemandImages(source, size, channels)
    indices = np.arange(len(source))
    if 0 < limit < len(source):
        indices = np.sort(np.random.default_rng(0).choice(indices, limit, replace=False))
    for start in range(0, len(indices), CHUNK):
        yield images.fetch(indices[start : start + CHUNK])[0]


def rings(height: int, width: int) -> np.ndarray:
    """The ring of each frequency [h, w]: its radius in cycles per longer side, rounded."""
    vertical, horizontal = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    return np.rint(max(height, width) * np.hypot(vertical, horizontal)).astype(int)


def ring_means(plane: np.ndarray) -> np.ndarray:
    """Means over the rings of a plane [h, w, c]: [ring, c]."""
    ring = rings(*plane.shape[:2]).reshape(-1)
    columns = plane.reshape(len(ring), -1).T
    return np.stack([np.bincount(ring, column) for column in columns], axis=-1) / np.bincount(ring)[:, None]


def masks_from(moments: Moments, centred: bool = False, radial: bool = False, channel_mean: bool = False) -> Masks:
    """Both masks; by default the published formulas.

    Args:
      moments: from `collect`.
      centred: take second moments about the mean image, so that zero frequency stops dominating.
      radial: average the power over rings of equal |frequency|, which halves the noise of small sets.
      channel_mean: average over the channels, so that no channel is treated apart.
    """
    power, square = moments.power / moments.n, moments.square / moments.n
    if centred:
        mean = moments.total / moments.n
        power = power - np.abs(np.fft.fft2(mean, axes=(0, 1))) ** 2
        square = square - mean**2
        # Differences of nearly equal numbers: what is left of a constant image is rounding, not negative power.
        power, square = np.maximum(power, 0), np.maximum(square, 0)
    if radial:
        power = ring_means(power)[rings(*power.shape[:2])]
    if channel_mean:
        power, square = (np.broadcast_to(x.mean(-1, keepdims=True), x.shape) for x in (power, square))
    return Masks(np.log1p(power), np.array(square))
