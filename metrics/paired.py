"""Image by image: how far a fast sampler ends from a slow one that started at the same noise.

For deterministic samplers this is the sharpest measure there is: it needs no reference statistics and few images, and
it goes to zero as the steps go to infinity. It says nothing about stochastic samplers, whose images differ by right.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from metrics.inputs import Images, to_unit

PerImage = Float[np.ndarray, "n"]
Distance = Callable[[np.ndarray, np.ndarray], Any]  # a pair of batches -> [batch]

_WINDOW = 11  # pixels
_WINDOW_STD = 1.5  # pixels


def rmse(a: Images, b: Images) -> PerImage:
    """Root mean square difference of each pair, over pixels and channels, in [0, 1] units."""
    a, b = _pair(a, b)
    return np.sqrt(np.mean((a - b) ** 2, axis=(1, 2, 3)))


def psnr(a: Images, b: Images) -> PerImage:
    """Peak signal-to-noise ratio -20 log10(rmse), in dB for a peak of 1; infinite for equal images."""
    with np.errstate(divide="ignore"):
        return -20 * np.log10(rmse(a, b))


def ssim(a: Images, b: Images) -> PerImage:
    """Structural similarity of each pair, at most 1 (Wang et al. 2004, "Image quality assessment").

    An 11 x 11 Gaussian window (std 1.5 px), K1 = 0.01, K2 = 0.03, biased moments, windows wholly inside the image only;
    the mean over windows and colour channels.

    Raises ValueError when the shapes differ or a side is shorter than the window.
    """
    a, b = _pair(a, b)
    if min(a.shape[1:3]) < _WINDOW:
        raise ValueError(
            f"SSIM's window is {_WINDOW} px and the images are {a.shape[1]} x {a.shape[2]}; use rmse or psnr instead."
        )
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a, var_b = _window_mean(a * a) - mean_a**2, _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return np.mean(luminance * structure, axis=(1, 2, 3))


def perceptual(distance: Distance, a: Images, b: Images, batch: int = 16) -> PerImage:
    """What a network says of each pair, such as LPIPS: 0 for equal images; two network calls a pair.

    distance: of images [batch, h, w, c] in [0, 1]; it is compiled once, the last batch being padded.
    """
    a, b = _pair(a, b)
    padded = np.resize(np.arange(len(a)), -(-len(a) // batch) * batch)
    parts = [distance(a[part].astype(np.float32), b[part].astype(np.float32)) for part in padded.reshape(-1, batch)]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])[: len(a)]


def _window_mean(x):
    import scipy.ndimage  # half a second of every start, otherwise

    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _WINDOW_STD**2))
    weights /= weights.sum()
    half = _WINDOW // 2
    x = scipy.ndimage.convolve1d(x, weights, axis=1)[:, half:-half]
    return scipy.ndimage.convolve1d(x, weights, axis=2)[:, :, half:-half]


def _pair(a, b):
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"Paired metrics need two equal sets, got {np.shape(a)} and {np.shape(b)}: draw both from the same --seeds."
        )
    return to_unit(a, "the first images"), to_unit(b, "the second images")
