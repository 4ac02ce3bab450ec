"""Pictures that show a condition beside what was drawn under it: before and after, or class by class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from builders.conditions import Take, start_pictures
from builders.guidance import create_condition
from builders.model import Model
from builders.samplers import class_labels
from reports.grids import comparison_grid
from reports.images import read_png, to_uint8, write_png

MOST = 8  # images a row


def write(model: Model, seeds: Sequence[int], folder: Path, caption: str) -> None:
    """before_after.png and by_class.png, where the run in `folder` has a condition of that kind."""
    config = model.config
    condition = create_condition(model, config)
    given = dict(condition.given)
    if config.sampling.start_image:
        given[f"start image, noised to {config.sampling.start_sigma:g}"] = start_pictures(model, config)
    labels = class_labels(config) if condition.labels is None else condition.labels
    if given:
        chosen = list(seeds[:MOST])
        rows = {label: to_uint8(Take(chosen, len(chosen))(pictures)) for label, pictures in given.items()}
        rows["drawn"] = _drawn(chosen, folder)
        write_png(folder / "before_after.png", comparison_grid(rows, caption=caption))
        logging.info("Before and after: %s", folder / "before_after.png")
    if labels is not None:
        own = Take(seeds, len(seeds))(labels)
        shown = min(MOST, *(int((own == label).sum()) for label in set(own.tolist())), len(seeds))
        rows = {
            f"class {label}": _drawn(
                [seed for seed, mine in zip(seeds, own, strict=True) if mine == label][:shown], folder
            )
            for label in sorted(set(own.tolist()))
        }
        write_png(folder / "by_class.png", comparison_grid(rows, caption=caption))
        logging.info("Class by class: %s", folder / "by_class.png")


def _drawn(indices: Sequence[int], folder: Path) -> np.ndarray:
    return np.stack([read_png(folder / f"image_{index}.png").image for index in indices])
