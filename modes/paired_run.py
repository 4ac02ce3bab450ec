"""How far a run ends from another one that began at the same noise; part of --mode=evaluate."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from builders.perceptual import load_perceptual
from metrics import paired
from reports.outputs import read_run

_WINDOW = 11  # pixels of a side below which there is no SSIM
_SAME = ("seed", "weights")  # settings without which equal indices are not equal noise


def distances(folder: Path, config: ConfigDict) -> dict[str, Any]:
    """Of the run in `folder` to that in config.eval.paired_with, over the images that both have; keys of a result row.

    paired_rmse, paired_psnr (of the mean square), paired_ssim from 11 px on, paired_lpips_<network> with
    config.loss.weights: means over paired_n images; paired_with and paired_calls say what the other run is.

    Raises ValueError where the two began at different noise or have no image in common.
    """
    other = Path(config.eval.paired_with)
    (ours, record), (theirs, their_record) = read_run(folder), read_run(other)
    for key in _SAME:
        here, there = (found["settings"].get(key) for found in (record, their_record))
        if here != there:
            raise ValueError(
                f"config.eval.paired_with={str(other)!r} has the {key} {there!r} and {folder} {here!r}: images of one "
                "number did not begin at the same noise. Draw both with the same checkpoint and --config.seed."
            )
    rows = {index: row for row, index in enumerate(image_indices(other))}
    common = [(row, rows[index]) for row, index in enumerate(image_indices(folder)) if index in rows]
    if not common:
        raise ValueError(f"{folder} and config.eval.paired_with={str(other)!r} have no image in common; see --seeds.")
    a, b = (images[np.array(chosen)] for images, chosen in zip((ours, theirs), zip(*common, strict=True), strict=True))
    error = paired.rmse(a, b)
    row: dict[str, Any] = {
        "paired_with": str(other),
        "paired_calls": their_record["sessions"][-1].get("calls"),
        "paired_n": len(common),
        "paired_rmse": float(error.mean()),
        "paired_psnr": float(-10 * np.log10(max(np.mean(error**2), 1e-12))),
    }
    if min(a.shape[1:3]) >= _WINDOW:
        row["paired_ssim"] = float(paired.ssim(a, b).mean())
    if config.loss.weights:
        lpips = load_perceptual(config.loss.weights, (0.0, 1.0))
        row[f"paired_lpips_{lpips.kind}"] = float(paired.perceptual(jax.jit(lpips), a, b).mean())
    return row


def image_indices(folder: Path) -> list[int]:
    """Of the images of a run that `read_run` has read, in its order."""
    return sorted(int(path.stem.removeprefix("image_")) for path in folder.glob("image_*.png"))
