"""--mode=masks: frequency and pixel masks of a data set, or of images that the model draws itself.

A preconditioner acts on what diffuses, so those of a latent model are of latents: its codec encodes the data set. The
published formulas then see (x + 1)/2 of a latent x, as they see it of an image in [-1, 1].
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from builders.config import apply_overrides, resolve_config
from builders.draw import sample_groups, to_pixels
from builders.latent import image_shape, is_latent
from builders.model import Model
from builders.samplers import create_sampler
from builders.training import data_source
from data import create_source
from data.pipeline import to_model_range
from masks import estimate
from masks.files import write_mask
from modes.request import Request, open_model, workdir_of
from reports.progress import Progress

# Deterministic and without masks: what the network says of images, without the noise a stochastic sampler leaves.
DRAWN_BY = {"sampling.method": "heun", "sampling.num_steps": 18}
OF_PIXELS: dict[str, Any] = {"range": [0, 1]}
OF_LATENTS: dict[str, Any] = {"of": "(x + 1)/2 of latents x"}


def run(request: Request) -> None:
    """Estimates frequency and pixel masks into W/masks/{freq,space}.npy: from config.data.source, or --from_model N."""
    folder = workdir_of(request) / "masks"
    if request.from_model:
        estimate_from_model(open_model(request), request, folder)
        return
    config = resolve_config(request.config)
    apply_overrides(config, request.overrides)
    source = create_source(data_source(config))
    size, _, channels = image_shape(config)
    chunks, facts = estimate.stream(source, size, channels), OF_PIXELS
    if is_latent(config):
        model = open_model(request)
        chunks = ((model.encode(to_model_range(chunk, centered=True)) + 1) / 2 for chunk in chunks)
        facts = OF_LATENTS
    _write(_counted(chunks, len(source), "estimating masks"), folder, facts | {"data": source.name})


def estimate_from_model(model: Model, request: Request, folder: Path) -> None:
    """Masks of `request.from_model` images drawn by `--method`, or by 18 steps of Heun where none is named.

    Raises ValueError for fewer than two images. The frequency mask is averaged over rings: of so few images each single
    frequency is uncertain by 1/sqrt(n), 12 % of its power for 64.
    """
    count = request.from_model
    if count < 2:
        raise ValueError(f"--from_model={count}: masks are means over images; draw at least 2, better 64.")
    if "sampling.method" not in request.overrides:
        apply_overrides(model.config, DRAWN_BY)
    sampler = create_sampler(model, model.config)
    groups = sample_groups(model, sampler, model.config, range(count))
    latent = is_latent(model.config)
    facts = (OF_LATENTS if latent else OF_PIXELS) | {
        "model": model.weights_hash,
        "method": model.config.sampling.method,
        "calls": sampler.nfe,
        "seed": model.config.seed,
        "radial": True,
    }
    images = (group.result.images for group in groups)
    drawn = ((image + 1) / 2 if latent else to_pixels(model, image) for image in images)
    _write(_counted(drawn, count, "drawing images for masks"), folder, facts, radial=True)


def _write(chunks: Iterable[np.ndarray], folder: Path, facts: dict[str, Any], radial: bool = False) -> None:
    moments = estimate.collect(chunks, bounded="range" in facts)
    freq, space = estimate.masks_from(moments, radial=radial)
    facts = {"n": moments.n} | facts
    write_mask(folder / "freq.npy", freq, facts | {"formula": "log(1 + mean |F x|^2)"})
    write_mask(folder / "space.npy", space, facts | {"formula": "mean x^2"})
    logging.info("Masks of %d images are in %s.", moments.n, folder)


def _counted(chunks: Iterable[np.ndarray], total: int, what: str) -> Iterator[np.ndarray]:
    with Progress(total, what, "image") as progress:
        for chunk in chunks:
            yield chunk
            progress.update(len(chunk))
