"""Do the metrics say of known faults what an independent program said?

python -m benchmarks.calibration --data FOLDER [--page docs/metrics.md]

FOLDER holds cifar10/{train,test}.zip and stats/cifar10_reference.npz, whose figures were computed in float64 by a
program that shares no code with this one. Images of CIFAR-10's test set, whole and spoilt, are held against its
training set. Draws are random there and here, so a figure is compared with the spread over ten draws; where nothing is
drawn it must agree to --tolerance. Exits with 1 if one does not.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags

from data import create_source
from data.pipeline import load_images
from metrics import frechet
from metrics.block_means import block_means
from metrics.frechet import Moments
from metrics.spectrum import radial_power, radial_power_error
from reports import rows

DRAWS = 10
FAULT_N = 4096  # images of each spoilt set
SPREADS = 4  # standard deviations over draws within which a figure agrees
COLUMNS = {
    "what": "held against the training set",
    "n": "n",
    "here": "block Frechet",
    "there": "independent program",
    "spectrum": "spectrum error",
}

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # uint8 images -> images


class Found(NamedTuple):
    """The distance over draws of images."""

    mean: float
    spread: float  # 0: nothing was drawn
    spectrum: float


def noisy(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(images / 255 + rng.normal(0, 25 / 255, images.shape), 0, 1)


def constant(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image one colour, its own mean."""
    del rng
    return np.broadcast_to(images.mean(axis=(1, 2), keepdims=True) / 255, images.shape)


def uniform(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(size=images.shape)


FAULTS: dict[str, tuple[Spoil, float]] = {  # with what the independent program found
    "test images with noise of 25 grey levels": (noisy, 0.048),
    "test images upside down": (lambda images, rng: images[:, ::-1], 0.873),
    "test images, each one colour": (constant, 6.28),
    "uniform noise": (uniform, 8.03),
}


def measure(
    images: np.ndarray, n: int, real: Moments, power: np.ndarray, spoil: Spoil = lambda images, rng: images
) -> Found:
    """`n` of the images, DRAWS times; all of them once where there are no more."""
    distances, errors = [], []
    for draw in range(DRAWS if n < len(images) else 1):
        rng = np.random.default_rng(draw)
        chosen = spoil(images[np.sort(rng.permutation(len(images))[:n])], rng)
        distances.append(frechet.frechet_distance(frechet.moments(block_means(chosen, 4)), real))
        errors.append(radial_power_error(radial_power(chosen).mean(axis=0), power) if draw == 0 else 0.0)
    return Found(float(np.mean(distances)), float(np.std(distances)), errors[0])


def pixel_distance(train: np.ndarray, test: np.ndarray) -> float:
    """Frechet distance of the 3072 pixels themselves: the largest covariance that the algebra is used for."""
    fits = []
    for images in (train, test):
        parts = np.array_split(images, -(-len(images) // 5000))
        fits.append(frechet.moments(block_means(parts[0], 1)))
        for part in parts[1:]:
            fits[-1] = frechet.merge_moments(fits[-1], frechet.moments(block_means(part, 1)))
    return frechet.frechet_distance(*fits)


def table(folder: Path) -> Iterator[dict]:
    """Rows: what was measured, here and there, and whether they agree."""
    train, labels = load_images(create_source(folder / "cifar10" / "train.zip"), 32)
    test, _ = load_images(create_source(folder / "cifar10" / "test.zip"), 32)
    with np.load(folder / "stats" / "cifar10_reference.npz") as file:
        reference = dict(file)
    yield row("all test images, single pixels", len(test), Found(pixel_distance(train, test), 0.0, np.nan), 0.8434)
    real, power = frechet.moments(block_means(train, 4)), radial_power(train).mean(axis=0)
    for n, there in zip(reference["ds8_fd_calibration_n"], reference["ds8_fd_calibration"], strict=True):
        yield row("test images", int(n), measure(test, int(n), real, power), float(there))
    for name, (spoil, there) in FAULTS.items():
        yield row(name, FAULT_N, measure(test, FAULT_N, real, power, spoil), there)
    airplanes = train[labels == 0]
    yield row("training images of airplanes alone", FAULT_N, measure(airplanes, FAULT_N, real, power), 2.40)


def row(what: str, n: int, found: Found, there: float) -> dict:
    here = f"{found.mean:.4g} ± {found.spread:.1g}" if found.spread else f"{found.mean:.4g}"
    shown = {"what": what, "n": n, "here": here, "there": f"{there:.3g}"}
    return shown | {"spectrum": None if np.isnan(found.spectrum) else found.spectrum, "found": found, "value": there}


def agrees(found: Found, there: float, tolerance: float) -> bool:
    """Whether the figure of one draw lies among those of our draws; without draws, within the tolerance."""
    return abs(found.mean - there) <= max(SPREADS * found.spread, tolerance * there)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected {argv[1:]}: options are written --name=value.")
    found = []
    for line in table(Path(flags.FLAGS.data)):
        found.append(line)
        print(f"{line['what']}, n={line['n']}: {line['here']}, there {line['there']}", flush=True)
    text = rows.markdown_table(found, COLUMNS)
    if flags.FLAGS.page:
        rows.replace_section(flags.FLAGS.page, "calibration", text)
    print(text)
    wrong = [line["what"] for line in found if not agrees(line["found"], line["value"], flags.FLAGS.tolerance)]
    if wrong:
        sys.exit(f"These do not agree: {'; '.join(wrong)}.")


if __name__ == "__main__":  # the flags too: tests import two such programs into one process
    flags.DEFINE_string("data", None, "Folder with cifar10/ and stats/.", required=True)
    flags.DEFINE_string("page", "", "Page whose section <!-- calibration --> gets the table.")
    flags.DEFINE_float("tolerance", 0.01, "Relative difference allowed: the figures are given to two or three digits.")
    app.run(main)
