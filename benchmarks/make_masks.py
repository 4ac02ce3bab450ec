"""Makes the shipped masks: the demo's two filters, and the radial profile of photographs at any size.

python benchmarks/make_masks.py --data flowers128.zip --name flowers32 --size 32
python benchmarks/make_masks.py --data flowers256_subset200.zip --profile_size 256

The filters are those of the training split: all images but every tenth (1st, 11th, ... in the sorted order of names).
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

from data import create_source  # noqa: E402
from data.pipeline import load_images  # noqa: E402
from masks import profiles  # noqa: E402
from masks.estimate import collect, masks_from, stream  # noqa: E402
from masks.files import write_mask  # noqa: E402

_DATA = flags.DEFINE_string("data", None, "Folder, zip or npz of images.", required=True)
_NAME = flags.DEFINE_string("name", "", "Write masks/<name>_{freq,space}.npy.")
_SIZE = flags.DEFINE_integer(
    "size", 32, "Pixels a side of the filters; images are cropped and resized as for training."
)
_PROFILE_SIZE = flags.DEFINE_integer("profile_size", 0, "Write masks/natural_profile.json from images of this size.")
_HELD_OUT = flags.DEFINE_integer("held_out_every", 10, "Leave out every k-th image of the filters; 0 takes all.")


def write_filters(name: str, size: int, every: int) -> None:
    images, _ = load_images(create_source(_DATA.value), size)
    kept = images[np.arange(len(images)) % every != 0] if every else images
    masks = masks_from(collect(np.array_split(kept, 1 + len(kept) // 64)))
    split = f"all images but every {every}th from the first" if every else "all images"
    provenance = {"n": len(kept), "data": f"{pathlib.Path(_DATA.value).name}: {split}", "range": [0, 1]}
    formulas = {"freq": "log(1 + mean |FFT2 x|^2)", "space": "mean x^2"}
    for kind, mask in masks._asdict().items():
        write_mask(profiles.NATURAL.with_name(f"{name}_{kind}.npy"), mask, {"formula": formulas[kind], **provenance})


def write_profile(size: int) -> None:
    moments = collect(stream(create_source(_DATA.value), size, 3))
    # The outer quarter of the frequencies shows the resizing filter and the JPEG tables rather than the world.
    power = profiles.profile_of(moments).power[: 3 * size // 8 + 1]
    content = {
        "about": "mean |FFT2 x|^2 / (h w)^2 at k = 0, 1, ... cycles per image, channels R, G, B, x in [0, 1]",
        "data": f"{pathlib.Path(_DATA.value).name} at {size} px",
        "n": moments.n,
        "power": [[float(f"{value:.4g}") for value in row] for row in power],
    }
    profiles.NATURAL.write_text(json.dumps(content).replace("], [", "],\n[") + "\n")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected {argv[1:]}: options are written --name=value.")
    if _NAME.value:
        write_filters(_NAME.value, _SIZE.value, _HELD_OUT.value)
    if _PROFILE_SIZE.value:
        write_profile(_PROFILE_SIZE.value)


if __name__ == "__main__":
    app.run(main)
