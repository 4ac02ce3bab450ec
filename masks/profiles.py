"""Frequency masks without a data set: radial power profiles, drawn at any size.

The power of natural images falls smoothly with frequency and hardly depends on direction. Divided by (h w)^2, mean
|F x|^2 at k cycles per image hardly depends on the number of pixels either (resizing an image keeps its Fourier
series), so one curve P(k) serves every size: mask = log(1 + (h w)^2 P(k)), the published formula. Beyond the measured
frequencies the curve goes on as the power law of its outer half.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from masks.estimate import Moments, ring_means, rings

NATURAL = Path(__file__).parent / "natural_profile.json"


class RadialProfile(NamedTuple):
    """Normalised mean power mean |F x|^2 / (h w)^2 of images in [0, 1] at k = 0, 1, ... cycles per image."""

    power: np.ndarray  # float64 [k, c]; c = 1 stands for any number of channels


def profile_of(moments: Moments) -> RadialProfile:
    """The measured profile, up to the last whole ring (the Nyquist frequency of the shorter side)."""
    height, width = moments.power.shape[:2]
    power = ring_means(moments.power / moments.n)[: min(height, width) // 2 + 1]
    return RadialProfile(power / (height * width) ** 2)


def profile_of_mask(freq: np.ndarray) -> RadialProfile:
    """The profile in a frequency mask [h, w, c] of the published formula; `draw` gives the mask back, ring by ring."""
    height, width = freq.shape[:2]
    power = ring_means(np.expm1(freq))[: min(height, width) // 2 + 1]
    return RadialProfile(power / (height * width) ** 2)


def power_law(exponent: float, length: int = 3) -> RadialProfile:
    """A / k^exponent, and a mean of 1/2. A gives 1/k^2 a contrast (standard deviation) of 1/4 at 32 pixels."""
    ring = rings(32, 32)
    contrast = np.sum(1.0 / ring[ring > 0] ** 2)
    k = np.arange(1, length + 1)
    return RadialProfile(np.append(0.25, 0.0625 / contrast * k ** -float(exponent))[:, None])


def natural_profile() -> RadialProfile:
    """The shipped profile of photographs (see the provenance inside the file)."""
    return RadialProfile(np.array(json.loads(NATURAL.read_text())["power"]))


def draw(profile: RadialProfile, height: int, width: int, channels: int) -> np.ndarray:
    """The frequency mask [h, w, c] of a profile, float64, zero frequency at [0, 0].

    Raises ValueError if the profile has another number of channels.
    """
    power = profile.power
    if power.shape[1] not in (1, channels):
        raise ValueError(f"A radial profile of {power.shape[1]} channels cannot be drawn with {channels}.")
    last = len(power) - 1
    k = np.arange(1, rings(height, width).max() + 1)
    log_k, log_power = np.log(np.arange(1, last + 1)), np.log(np.maximum(power[1:], 1e-15))
    outer = slice(last // 2, None)
    columns = []
    for column in log_power.T:
        slope = np.polyfit(log_k[outer], column[outer], 1)[0]
        beyond = column[-1] + slope * (np.log(k) - log_k[-1])
        columns.append(np.where(k <= last, np.interp(np.log(k), log_k, column), beyond))
    curve = np.concatenate([power[:1], np.exp(np.stack(columns, axis=-1))])
    drawn = curve[rings(height, width)]
    return np.log1p((height * width) ** 2 * np.broadcast_to(drawn, (height, width, channels)))
