"""--mode=masks: frequency and pixel masks of a data set."""

from collections.abc import Iterator

import numpy as np
from absl import logging

from builders.config import resolve_config
from builders.training import data_source
from data import create_source
from masks import estimate
from masks.files import write_mask
from modes.request import Request, workdir_of
from reports.progress import Progress


def run(request: Request) -> None:
    """Estimates frequency and pixel masks from config.data.source into W/masks/{freq,space}.npy."""
    config, folder = resolve_config(request.config), workdir_of(request) / "masks"
    source = create_source(data_source(config))
    chunks = estimate.stream(source, config.data.image_size, config.data.num_channels)
    moments = estimate.collect(_counted(chunks, len(source), "estimating masks"))
    freq, space = estimate.masks_from(moments)
    facts = {"n": moments.n, "data": source.name, "range": [0, 1]}
    write_mask(folder / "freq.npy", freq, facts | {"formula": "log(1 + mean |F x|^2)"})
    write_mask(folder / "space.npy", space, facts | {"formula": "mean x^2"})
    logging.info("Masks of %d images are in %s.", moments.n, folder)


def _counted(chunks: Iterator[np.ndarray], total: int, what: str) -> Iterator[np.ndarray]:
    with Progress(total, what, "image") as progress:
        for chunk in chunks:
            yield chunk
            progress.update(len(chunk))
