"""--mode=encode: the user's images as latents, by the probability flow run backwards, and how well they come back."""

import numpy as np
from absl import logging

from builders import adaptive
from builders.conditions import start_pictures, to_range
from builders.draw import to_pixels
from builders.samplers import class_labels
from modes.request import Request, open_model, workdir_of
from reports.atomic import write_atomically
from reports.grids import comparison_grid
from reports.images import write_png

SHOWN = 16  # images of the picture


def run(request: Request) -> None:
    """Writes W/encode/latents.npz (arr_0, in units of the prior, in the order of the images' names) and round_trip.png.

    `--method ode --config.sampling.latents W/encode/latents.npz` draws the images again.
    """
    model = open_model(request)
    config, folder = model.config, workdir_of(request) / "encode"
    if not config.sampling.start_image:
        raise ValueError("--start_image is missing: name the image, folder or zip of images to encode.")
    images = model.encode(to_range(start_pictures(model, config), config))
    labels = class_labels(config)
    labels = None if labels is None else np.resize(labels, len(images)).tolist()
    logging.info("Encoding %d images, %s to %g.", len(images), config.sampling.ode.solver, config.sampling.ode.rtol)
    latents, up = adaptive.encode(model, images, labels)
    again, down = adaptive.decode(model, latents, labels)
    if not np.isfinite(again).all():
        raise FloatingPointError("The flow did not come to its end; loosen --config.sampling.ode.rtol and atol.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "latents.npz", lambda file: np.savez(file, latents))
    low, high = model.data_range
    error = np.abs(again - images).max(axis=(1, 2, 3)) / (high - low)
    rows = {"given": to_pixels(model, images[:SHOWN]), "decoded from its latent": to_pixels(model, again[:SHOWN])}
    write_png(folder / "round_trip.png", comparison_grid(rows, caption=f"largest difference {error.max():.2g}"))
    logging.info(
        "%s: %d latents of standard deviation %.3f (noise has 1); %d to %d network calls up, %d to %d down; largest "
        "difference after the round trip %.2g of black to white.",
        folder / "latents.npz",
        len(latents),
        latents.std(),
        up.min(),
        up.max(),
        down.min(),
        down.max(),
        error.max(),
    )
