"""Compares estimated masks with reference statistics made by an independent program.

python benchmarks/check_masks.py --data FOLDER

FOLDER holds cifar10/train.zip, flowers/flowers{128,256_subset200}.zip and stats/{cifar10,flowers}_reference.npz. Prints
the largest relative error of each mask; exits with 1 if one is above --tolerance. (The flowers' masks are float32.)
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

from data import create_source  # noqa: E402
from data.pipeline import load_images  # noqa: E402
from masks.estimate import Masks, collect, masks_from  # noqa: E402
from precond.diagonal import diagonal  # noqa: E402

_DATA = flags.DEFINE_string("data", None, "Folder with cifar10/, flowers/ and stats/.", required=True)
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "Largest relative error allowed.")


def masks_of(images: np.ndarray) -> Masks:
    return masks_from(collect(np.array_split(images, 1 + len(images) // 64)))


def error(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest relative error of a mask [h, w, c] against (C, H, W)."""
    return float(np.abs(np.moveaxis(ours, -1, 0) / reference - 1).max())


def cifar10(folder: pathlib.Path, reference: dict) -> dict[str, float]:
    images, labels = load_images(create_source(folder / "cifar10" / "train.zip"), 32)
    per_class = np.concatenate([np.flatnonzero(labels == label)[:20] for label in range(10)])
    errors = {}
    for name, subset in (
        ("first200_sorted", images[:200]),
        ("first20_per_class", images[per_class]),
        ("all_train", images),
    ):
        for kind, mask in masks_of(subset)._asdict().items():
            errors[f"cifar10 {name} {kind}"] = error(mask, reference[f"pds_{kind}_mask_{name}"])
            for key in reference:
                if key.startswith(f"pds_{kind}_filter_alpha") and key.endswith(name):
                    alpha = float(key.removeprefix(f"pds_{kind}_filter_alpha").split("_")[0])
                    errors[f"cifar10 {name} {kind} diagonal, alpha {alpha:g}"] = error(
                        diagonal(mask, alpha, key), reference[key]
                    )
    return errors


def flowers(folder: pathlib.Path, reference: dict) -> dict[str, float]:
    large, _ = load_images(create_source(folder / "flowers" / "flowers128.zip"), 128)
    few, _ = load_images(create_source(folder / "flowers" / "flowers256_subset200.zip"), 256)
    # The reference takes 2x2 means without rounding them to bytes, unlike the data pipeline.
    halves = (
        large.reshape(-1, 64, 2, 64, 2, 3)[start : start + 64].mean(axis=(2, 4)) / 255
        for start in range(0, len(large), 64)
    )
    rounded, _ = load_images(create_source(folder / "flowers" / "flowers128.zip"), 64)
    errors = {}
    for size, masks in ((64, masks_from(collect(halves))), (128, masks_of(large)), (256, masks_of(few))):
        for kind, mask in masks._asdict().items():
            errors[f"flowers {size} px {kind}"] = error(mask, reference[f"r{size}_{kind}_mask"])
    for kind, mask in masks_of(rounded)._asdict().items():
        print(f"flowers 64 px {kind}, pixels rounded to bytes: {error(mask, reference[f'r64_{kind}_mask']):.1e}")
    return errors


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected {argv[1:]}: options are written --name=value.")
    folder = pathlib.Path(_DATA.value)
    errors: dict[str, float] = {}
    for check in (cifar10, flowers):
        with np.load(folder / "stats" / f"{check.__name__}_reference.npz") as reference:
            errors |= check(folder, dict(reference))
    for name, value in errors.items():
        print(f"{name}: {value:.1e}")
    worst = max(errors, key=lambda name: errors[name])
    print(f"worst: {worst}, {errors[worst]:.1e} (allowed {_TOLERANCE.value:g})")
    sys.exit(errors[worst] > _TOLERANCE.value)


if __name__ == "__main__":
    app.run(main)
