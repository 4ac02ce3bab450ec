"""The radial power spectrum: how much of an image's variation sits at which scale.

Natural images follow a power law (the power falls about as 1/k^2.5 on photographs), and a sampler's faults show
against it: left-over noise lifts the high frequencies, over-smoothing lowers them. Preconditioned samplers act on just
this, so it is the first thing to look at. Definitions, for images in [0, 1]:

* power: |FFT x|^2 with the unnormalised 2-D DFT, mean not removed; pixel noise of standard deviation tau adds h w tau^2
  to every frequency;
* radius of a frequency: its length in cycles per shorter side of the image, rounded to the nearest integer, up to half
  that side; the corners beyond are left out.
"""

import numpy as np
from jaxtyping import Float

from metrics.inputs import Images, unit_batches
from metrics.intervals import Interval, jackknife_interval

Power = Float[np.ndarray, "n c h w"]  # |FFT|^2, channel first
RadialPower = Float[np.ndarray, "n c k"]  # each image's spectrum
MeanRadialPower = Float[np.ndarray, "c k"]  # a set's

_NO_POWER = 1e-9  # orders below what rounding to uint8 adds; keeps a constant image's error finite


def radial_average(power: Power) -> RadialPower:
    """Means of `power` (zero frequency at [0, 0], no shift) over the frequencies of each radius."""
    import scipy.sparse  # half a second of every start, otherwise

    n, channels, height, width = power.shape
    side = min(height, width)
    rows, columns = np.fft.fftfreq(height) * side, np.fft.fftfreq(width) * side
    radius = np.rint(np.hypot(rows[:, None], columns[None])).astype(int).ravel()
    inside = np.flatnonzero(radius <= side // 2)
    weights = 1 / np.bincount(radius[inside])[radius[inside]]
    average = scipy.sparse.csr_array((weights, (radius[inside], inside)), shape=(side // 2 + 1, height * width))
    return (average @ power.reshape(-1, height * width).T).T.reshape(n, channels, -1)


def radial_power(images: Images) -> RadialPower:
    """The radial power spectrum of each image, [n, c, k]; a set's spectrum is the mean over n."""
    import scipy.fft  # half a second of every start, otherwise

    return np.concatenate(
        [
            radial_average(np.abs(scipy.fft.fft2(batch.transpose(0, 3, 1, 2), workers=2)) ** 2)
            for batch in unit_batches(images)
        ]
    )


def radial_power_error(power: MeanRadialPower, reference: MeanRadialPower) -> float:
    """How far two spectra are apart: sqrt(mean over channels and radii k >= 1 of log(power / reference)^2).

    0.1 means that the powers differ by about 10 % at a typical radius. Every radius counts the same, so the weak high
    frequencies weigh as much as the strong low ones. k = 0 is the mean colour, no matter of scale, and is left out.
    """
    _check_same_radii(power, reference)
    ratio = np.maximum(power[:, 1:], _NO_POWER) / np.maximum(reference[:, 1:], _NO_POWER)
    return float(np.sqrt(np.mean(np.log(ratio) ** 2)))


def radial_power_interval(
    power: RadialPower, reference: MeanRadialPower, replicates: int = 100, seed: int = 0, level: float = 0.95
) -> Interval:
    """`radial_power_error` of the mean of `power` [n, c, k] with a jackknife interval over the n images."""
    interval = jackknife_interval(
        lambda index: radial_power_error(power[index].mean(axis=0), reference), len(power), replicates, seed, level
    )
    return interval._replace(low=max(interval.low, 0.0))


def residual_noise(power: MeanRadialPower, reference: MeanRadialPower, pixels: int) -> float:
    """Standard deviation of the white pixel noise that would explain the excess power in the upper half of the radii.

    In [0, 1] units (times 255: grey levels). Negative: that much is missing there, the images are too smooth.

    Args:
      power, reference: mean spectra [c, k] at one image size; pixels: h * w of those images.

    White noise adds pixels * tau^2 at every radius, so each radius gives an estimate of tau^2; their errors grow with
    the natural power, hence the mean with weights 1 / reference^2 over the upper half (k > k_max / 2), where it is
    weakest.
    """
    _check_same_radii(power, reference)
    high = np.arange(reference.shape[1]) > (reference.shape[1] - 1) / 2
    weights = 1 / reference[:, high] ** 2
    variance = np.average(power[:, high] - reference[:, high], weights=weights) / pixels
    return float(np.sign(variance) * np.sqrt(np.abs(variance)))


def residual_noise_interval(
    power: RadialPower,
    reference: MeanRadialPower,
    pixels: int,
    replicates: int = 100,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`residual_noise` of the mean of `power` [n, c, k] with a jackknife interval over the n images."""
    return jackknife_interval(
        lambda index: residual_noise(power[index].mean(axis=0), reference, pixels), len(power), replicates, seed, level
    )


def _check_same_radii(power, reference):
    if power.shape != reference.shape:
        raise ValueError(
            f"Spectra of shapes {power.shape} and {reference.shape} ([c, k]) cannot be compared: the images differ in "
            "size or channels. Recompute the reference at this size (benchmarks/reference_statistics.py)."
        )
