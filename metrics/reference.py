"""Statistics of a data set, kept in one small file, and what samples score against them.

The file is an .npz: name, n, image_shape, block; mean and covariance of the block means; the radial power spectrum;
the mean colour. `benchmarks/reference_statistics.py` makes one from images; a few hundred kB replace the data set, so
that a laptop without it can still tell a good sampler from a bad one.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metrics import frechet, spectrum
from metrics.block_means import block_means
from metrics.frechet import Moments
from metrics.inputs import Images, unit_batches

_KEYS = ("name", "n", "image_shape", "block", "block_mean", "block_covariance", "radial_power", "mean_colour")


class Reference(NamedTuple):
    """What `scores` needs to know of the real images."""

    name: str  # of the data set and split, for result rows
    image_shape: tuple[int, ...]  # (h, w, c)
    block: int  # pixels a side
    block_moments: Moments  # of `block_means`, with n
    radial_power: spectrum.MeanRadialPower
    mean_colour: np.ndarray  # [c], in [0, 1]

    @property
    def n(self) -> int:
        assert self.block_moments.n is not None
        return self.block_moments.n


def compute_reference(images: Images, name: str, block: int = 4) -> Reference:
    """The statistics of images [n, h, w, c] (uint8 or in [0, 1]); blocks of `block` pixels a side."""
    return Reference(
        name=name,
        image_shape=np.shape(images)[1:],
        block=block,
        block_moments=frechet.moments(block_means(images, block)),
        radial_power=spectrum.radial_power(images).mean(axis=0),
        mean_colour=_mean_colour(images),
    )


def _mean_colour(images):
    return sum(batch.sum(axis=0) for batch in unit_batches(images)).mean(axis=(0, 1)) / len(images)


def save_reference(path: str | Path, reference: Reference) -> None:
    """Writes the .npz. The covariance is stored in float32, which moves a distance by less than 1e-6 of the trace."""
    with open(path, "wb") as file:  # a name without .npz would be changed by np.savez
        np.savez_compressed(
            file,
            name=reference.name,
            n=reference.n,
            image_shape=reference.image_shape,
            block=reference.block,
            block_mean=reference.block_moments.mean,
            block_covariance=reference.block_moments.covariance.astype(np.float32),
            radial_power=reference.radial_power,
            mean_colour=reference.mean_colour,
        )


def load_reference(path: str | Path) -> Reference:
    """Reads what `save_reference` wrote.

    Raises FileNotFoundError, or ValueError when the file is something else; both say how to make one.
    """
    remedy = "Make one from images: python -m benchmarks.reference_statistics --data IMAGES --name NAME --out FILE.npz."
    if not Path(path).exists():
        raise FileNotFoundError(f"No reference statistics at {path}. {remedy}")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz of reference statistics ({error}). {remedy}") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {missing}; it holds {sorted(arrays)}. {remedy}")
    return Reference(
        name=str(arrays["name"]),
        image_shape=tuple(arrays["image_shape"].tolist()),
        block=int(arrays["block"]),
        block_moments=Moments(arrays["block_mean"], arrays["block_covariance"].astype(np.float64), int(arrays["n"])),
        radial_power=arrays["radial_power"],
        mean_colour=arrays["mean_colour"],
    )


def check_shape(shape: tuple[int, ...], reference: Reference) -> None:
    """Raises ValueError for images (h, w, c) of another size than the reference's."""
    if tuple(shape) != reference.image_shape:
        raise ValueError(
            f"Images are {tuple(shape)} and the reference {reference.name!r} is {reference.image_shape} (h, w, c): "
            "resize neither; make a reference at the model's size (benchmarks/reference_statistics.py --size)."
        )


def scores(images: Images, reference: Reference, replicates: int = 100, seed: int = 0) -> dict[str, float | int | str]:
    """All that can be said of samples [n, h, w, c] from the reference alone, as one flat dict for a result row.

    Keys:
      n, reference, reference_n: what was compared; never quote the rest without them.
      block_frechet, _low, _high: Frechet distance on block means, with a 95 % jackknife interval over the images.
      block_frechet_floor: what n perfect samples would score (`frechet_floor`).
      radial_power_error, _low, _high: `spectrum.radial_power_error` with its interval.
      residual_noise, _low, _high: `spectrum.residual_noise` likewise, in [0, 1] units; negative for too smooth.
      colour_error: root mean square difference of the mean colour over channels.

    Raises ValueError for another image size than the reference's, or n too small for the covariance.
    """
    check_shape(np.shape(images)[1:], reference)
    features = block_means(images, reference.block)
    block = frechet.frechet_interval(features, reference.block_moments, replicates, seed)
    return spectrum_scores(images, reference, replicates, seed) | {
        "block_frechet": block.value,
        "block_frechet_low": block.low,
        "block_frechet_high": block.high,
        "block_frechet_floor": frechet.frechet_floor(reference.block_moments, len(features)),
    }


def spectrum_scores(
    images: Images, reference: Reference, replicates: int = 100, seed: int = 0
) -> dict[str, float | int | str]:
    """The part of `scores` that any n >= 2 allows: all its keys but block_frechet and those that belong to it."""
    shape = np.shape(images)[1:]
    check_shape(shape, reference)
    power = spectrum.radial_power(images)
    radial = spectrum.radial_power_interval(power, reference.radial_power, replicates, seed)
    noise = spectrum.residual_noise_interval(power, reference.radial_power, shape[0] * shape[1], replicates, seed)
    colour = _mean_colour(images) - reference.mean_colour
    return {
        "n": len(power),
        "reference": reference.name,
        "reference_n": reference.n,
        "radial_power_error": radial.value,
        "radial_power_error_low": radial.low,
        "radial_power_error_high": radial.high,
        "residual_noise": noise.value,
        "residual_noise_low": noise.low,
        "residual_noise_high": noise.high,
        "colour_error": float(np.sqrt(np.mean(colour**2))),
    }
