"""--mode=likelihood: how many bits a dimension the model needs for images; one row in W/likelihood.jsonl."""

import sys
import time
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import likelihood
from builders.conditions import parse_labels
from data import create_source
from data.pipeline import OnDemandImages
from modes.request import Request, open_model, workdir_of
from reports import rows


def run(request: Request) -> None:
    """Scores the first --num_samples images of config.data.source, those kept out of training if config.data.holdout.

    Appends the mean and its standard error over the images, the network calls and the circumstances.
    """
    model = open_model(request)
    config, workdir = model.config, workdir_of(request)
    likelihood.check(config, model.denoiser.told)
    pixels, labels = images(config)
    ode = config.sampling.ode
    logging.info("The flow of %d images by %s, rtol %g, atol %g.", len(pixels), ode.solver, ode.rtol, ode.atol)
    if request.dry_run:
        return
    start = time.perf_counter()
    found = likelihood.evaluate(model, pixels, labels)
    seconds = time.perf_counter() - start
    if not np.isfinite(found.bits_per_dim).all():
        raise FloatingPointError("The flow did not come to its end; loosen --config.sampling.ode.rtol and atol.")
    row = {
        "bits_per_dim": float(found.bits_per_dim.mean()),
        "standard_error": float(found.bits_per_dim.std(ddof=1) / np.sqrt(len(pixels))) if len(pixels) > 1 else None,
        "n": len(pixels),
        "images": Path(config.data.source).name,
        "held_out": bool(config.data.holdout),
        "calls": float(found.calls.mean()),
        "most_calls": int(found.calls.max()),
        "solver": ode.solver,
        "rtol": ode.rtol,
        "atol": ode.atol,
        "seconds": seconds,
        "seed": config.seed,
        "checkpoint": model.weights_hash[:12],
        "machine": rows.machine(),
        "command": " ".join(sys.argv),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    rows.append_row(workdir / "likelihood.jsonl", row)
    for key, value in row.items():
        print(f"{key:28} {value:.5g}" if isinstance(value, float) else f"{key:28} {value}")


def images(config: ConfigDict) -> tuple[np.ndarray, np.ndarray | None]:
    """The images to score, uint8 [n, h, w, c], in the order of the source, and the class of each, [n].

    Classes are those of --labels in turn, or else the images' own; None for a network that is told none.
    """
    data, wanted = config.data, config.eval.num_samples
    if not data.source:
        raise ValueError("There are no images to score: set --config.data.source to a folder, zip or npz of images.")
    if wanted < 1:
        raise ValueError(f"--num_samples={wanted} must be at least 1.")
    source = create_source(data.source, data.split)
    places = np.arange(0, len(source), data.holdout or 1)
    if len(places) < wanted:
        kept = f" that config.data.holdout={data.holdout} keeps out of training" if data.holdout else ""
        logging.warning("--num_samples=%d, but %s has %d images%s.", wanted, data.source, len(places), kept)
    pixels, own = OnDemandImages(source, data.image_size, data.num_channels).fetch(places[:wanted])
    if not data.num_classes:
        return pixels, None
    labels = (
        np.resize(parse_labels(config.sampling.labels, data.num_classes, config.seed), len(pixels))
        if config.sampling.labels
        else own
    )
    if not 0 <= labels.min() <= labels.max() < data.num_classes:
        raise ValueError(
            f"{data.source} has classes {labels.min()} to {labels.max()} and the network {data.num_classes}; name the "
            "images' classes by --labels."
        )
    return pixels, labels
