"""PDS against the plain sampler on the demo checkpoint: the table and pictures of docs/results.md.

python -m benchmarks.pds_table --workdir out/pds_table [--speed_ups 5,10,20,40] [--n 1000] [--n_slow 128]

Each row draws n images (n_slow where an image takes more than 200 network calls) and compares them with the training
photographs: Frechet distance of 4x4-block means (not FID: no network judges) of all and, for rows of different n beside
one another, of subsets of n_slow; radial power-spectrum error, and the noise left in the pictures, with intervals.
Images are kept in W, block by block: a run that is stopped or repeated with a larger n draws only what is missing.
Seconds are n times the median over blocks, so that a burst of other work does not count.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

import run_lib
from metrics import reference
from metrics.block_means import block_means
from metrics.frechet import frechet_of_subsets
from reports import rows
from reports.atomic import write_atomically
from reports.grids import comparison_grid
from reports.images import write_png

_WORKDIR = flags.DEFINE_string("workdir", "out/pds_table", "Rows and pictures go here.")
_CONFIG = flags.DEFINE_string("model_config", "configs/ve/demo.py", "The model.")
_REFERENCE = flags.DEFINE_string(
    "reference", "demo/flowers32_reference.npz", "From benchmarks/reference_statistics.py."
)
_SPEED_UPS = flags.DEFINE_list("speed_ups", ["40", "20", "10", "5", "1"], "Speed-ups.")
_METHODS = flags.DEFINE_list("methods", None, "Of METHODS, the ones to draw; others stay as they are. Default: all.")
_N = flags.DEFINE_integer("n", 1000, "Images a row up to 200 network calls an image.")
_N_SLOW = flags.DEFINE_integer(
    "n_slow", 128, "Images a row above that; also the size of the subsets that compare all rows."
)
_PAGE = flags.DEFINE_string(
    "page", "", "Markdown page whose section pds_table is rewritten, such as docs/results.md; rows not in W stay."
)

METHODS = {  # row name -> changes to config.sampling
    "vanilla": {"method": "pc"},
    "paper": {"method": "pds", "pds_mode": "paper"},
    "paper_auto": {"method": "pds", "pds_mode": "paper", "alpha": "auto"},
    "marginal": {"method": "pds", "pds_mode": "marginal"},
    "corrector_only": {"method": "pds", "pds_mode": "corrector_only"},
}
COLUMNS = {
    "method": "method",
    "speed_up": "speed-up",
    "calls": "calls",
    "n": "n",
    "block_frechet": "block Frechet",
    "block_frechet_subsets": "of subsets",
    "radial_power_error": "spectrum error",
    "residual_noise": "residual noise",
    "seconds": "seconds",
}


BLOCK = 64  # images drawn between two saves


def draw(model: run_lib.Model, sampling: dict, count: int, kept: Path) -> tuple[np.ndarray, float]:
    """uint8 images 0..count-1, and the seconds an image takes without compilation: the median over blocks."""
    images, seconds = np.zeros((0, *model.shape), np.uint8), np.zeros(0)
    if kept.exists():
        with np.load(kept) as file:
            images, seconds = file["images"], file["seconds"]
    if len(images) < count:  # compiles before the clock runs: the number of levels enters no shape
        run_lib.sample(model, sampling | {"num_steps": 2}, range(BLOCK))
    while len(images) < count:
        indices = range(len(images), min(count, len(images) + BLOCK))
        start = time.perf_counter()
        result = run_lib.sample(model, sampling, indices)
        seconds = np.append(seconds, (time.perf_counter() - start) / len(indices))
        images = np.concatenate([images, run_lib.to_pixels(model, result.images)])
        write_atomically(kept, lambda file: np.savez(file, images=images, seconds=seconds))  # noqa: B023
    return images[:count], float(np.median(seconds))


def scores(images: np.ndarray, photographs: reference.Reference) -> dict[str, Any]:
    """What n images allow: the Frechet distance of all only where a covariance can be made from them."""
    features = block_means(images, photographs.block)
    enough = len(images) > features.shape[1]
    row = (reference.scores if enough else reference.spectrum_scores)(images, photographs)
    subsets = frechet_of_subsets(features, photographs.block_moments, _N_SLOW.value)
    return row | {"block_frechet_subsets": subsets, "subset": _N_SLOW.value}


def table(known: Sequence[rows.Row]) -> list[rows.Row]:
    """The last row of each method and speed-up: fastest samplers first, vanilla before the others."""
    newest = {(row["method"], row["speed_up"]): row for row in known}
    return sorted(newest.values(), key=lambda row: (-row["speed_up"], list(METHODS).index(row["method"])))


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    model = run_lib.load(_CONFIG.value)
    photographs = reference.load_reference(_REFERENCE.value)
    for speed_up in map(float, _SPEED_UPS.value):
        kept = {name: folder / f"{name}_{speed_up:g}.npz" for name in METHODS}
        calls = 2 * int(model.sde.num_scales / speed_up)
        count = _N.value if calls <= 200 else _N_SLOW.value
        for name in _METHODS.value or METHODS:
            images, seconds = draw(model, METHODS[name] | {"speed_up": speed_up}, count, kept[name])
            row = {"method": name, "speed_up": speed_up, "calls": calls, "seconds": round(seconds * count, 1)}
            row |= scores(images, photographs)
            row |= {"seed": model.config.seed, "checkpoint": model.weights_hash[:12], "command": " ".join(sys.argv[1:])}
            rows.append_row(folder / "rows.jsonl", row | {"machine": rows.machine()})
            logging.info("%s", row)
        pictures = {
            f"{name}, {calls} calls": np.load(path)["images"][:8] for name, path in kept.items() if path.exists()
        }
        write_png(folder / f"speed_up_{speed_up:g}.png", comparison_grid(pictures, caption="equal noise, seed 0"))
    if _PAGE.value:
        known = rows.read_table(_PAGE.value, "pds_table", COLUMNS) + rows.read_rows(folder / "rows.jsonl")
        rows.replace_section(_PAGE.value, "pds_table", rows.markdown_table(table(known), COLUMNS))


if __name__ == "__main__":
    app.run(main)
