"""The statistics samples are compared with, from images.

python -m benchmarks.reference_statistics --data flowers128.zip --name flowers32 --out demo/flowers32_reference.npz

The reference is the training split: all images but every tenth (the 1st, 11th, 21st ... in the sorted order of names).
The held-out tenth is then scored against it, which shows what real photographs of the same kind get: no sampler should
be expected to do better at that n, and one that does has memorised.
"""

import numpy as np
from absl import app, flags

from data import create_source
from data.pipeline import load_images
from metrics import nearest, spectrum
from metrics.block_means import block_means
from metrics.frechet import frechet_distance, frechet_of_subsets, moments
from metrics.reference import Reference, compute_reference, save_reference, scores

_DATA = flags.DEFINE_string("data", None, "Folder, zip or npz of images.", required=True)
_OUT = flags.DEFINE_string("out", None, "The .npz to write.", required=True)
_NAME = flags.DEFINE_string("name", None, "Name of the data set in result rows.", required=True)
_SIZE = flags.DEFINE_integer("size", 32, "Pixels a side; images are centre-cropped and resized as for training.")
_CHANNELS = flags.DEFINE_integer("channels", 3, "1 for grey, 3 for colour.")
_BLOCK = flags.DEFINE_integer("block", 4, "Pixels a side of the blocks whose means are the features.")
_HELD_OUT = flags.DEFINE_integer("held_out_every", 10, "Hold out every k-th image; 0 takes all as the reference.")

SUBSET = 128  # images, of the subsets by which benchmarks.pds_table compares rows of any n


def print_calibration(reference: Reference, training: np.ndarray, held_out: np.ndarray, draws: int = 50) -> None:
    """Scores of real photographs: the held-out ones, and as many drawn from the training split itself."""
    for key, value in scores(held_out, reference).items():
        print(f"held out  {key}: {value:.4g}" if isinstance(value, float) else f"held out  {key}: {value}")
    if len(held_out) >= SUBSET:
        found = frechet_of_subsets(block_means(held_out, reference.block), reference.block_moments, SUBSET)
        print(f"held out  block_frechet of subsets of {SUBSET}: {found:.4g}")
    features = block_means(training, reference.block)
    power = spectrum.radial_power(training)
    rng = np.random.default_rng(0)
    subsets = [rng.choice(len(training), len(held_out), replace=False) for _ in range(draws)]
    distances = [frechet_distance(moments(features[index]), reference.block_moments) for index in subsets]
    errors = [spectrum.radial_power_error(power[index].mean(axis=0), reference.radial_power) for index in subsets]
    for key, values in (("block_frechet", distances), ("radial_power_error", errors)):
        print(f"training subsets of n={len(held_out)}  {key}: {np.mean(values):.4g} +- {np.std(values, ddof=1):.2g}")
    distance = nearest.nearest_neighbours(held_out, training).distance[:, 0]
    quantiles = np.quantile(distance, [0.01, 0.1, 0.5])
    print(
        "held out  distance to the nearest training image, 1 %, 10 %, 50 %: " + ", ".join(f"{q:.4f}" for q in quantiles)
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected {argv[1:]}: options are written --name=value.")
    images, _ = load_images(create_source(_DATA.value), _SIZE.value, _CHANNELS.value)
    every = _HELD_OUT.value
    held = np.arange(len(images)) % every == 0 if every else np.zeros(len(images), bool)
    reference = compute_reference(images[~held], _NAME.value, _BLOCK.value)
    save_reference(_OUT.value, reference)
    print(f"{_OUT.value}: {reference.n} of {len(images)} images of {_DATA.value} at {_SIZE.value} px")
    if every:
        print_calibration(reference, images[~held], images[held])


if __name__ == "__main__":
    app.run(main)
