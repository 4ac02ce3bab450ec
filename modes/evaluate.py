"""--mode=evaluate: what the images of W/<eval_folder> score against a reference; one row in W/results.jsonl."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import judge as judges
from builders import processes
from builders.config import apply_overrides, resolve_config, shipped
from builders.latent import image_shape
from data import create_source
from data.pipeline import load_images
from metrics import feature_reference, nearest, reference, spectrum
from metrics.block_means import block_means
from metrics.precision_recall import precision_recall
from metrics.sliced_wasserstein import pyramid_distances
from modes import paired_run
from modes.request import Request, workdir_of
from reports import rows
from reports.images import png_shape, read_png
from reports.outputs import read_run
from reports.plots import plot_spectra


class Photographs(NamedTuple):
    """Real images, uint8 [n, h, w, c]."""

    training: np.ndarray
    held_out: np.ndarray


class Standards(NamedTuple):
    """What a run is held against."""

    statistics: reference.Reference | None  # of block means
    photographs: Photographs | None
    judge: judges.Judge | None  # an Inception network


def run(request: Request) -> None:
    """Measures a folder of samples.

    Statistics come from config.eval.reference (`benchmarks/reference_statistics.py` makes one) or, where that is empty,
    from the images of config.data.source, kept in W/reference.npz. With the images at hand the row also has what
    statistics cannot tell: sliced Wasserstein distances, precision and recall, nearest neighbours. With an Inception
    network (config.eval.detector) it has FID and the like (`builders.judge.scores`), with a long run from equal noise
    (config.eval.paired_with) the distance to that. Several processes share what that network is shown; the first does
    the rest and writes.
    """
    config, workdir = resolve_config(request.config), workdir_of(request)
    apply_overrides(config, request.overrides)
    folder = workdir / config.eval.eval_folder
    # A run knows its size, whatever the config says; of what is none, `measure` speaks.
    drawn = (png_shape(path) for path in sorted(folder.glob("image_*.png"))[:1])
    shape = next(drawn, None) or image_shape(config)
    if request.dry_run:
        logging.info("%s", describe(config, folder, shape))
        return
    row = measure(folder, *open_standards(config, workdir, shape))
    if not processes.is_first():
        return
    if config.eval.paired_with:
        row |= paired_run.distances(folder, config)
    rows.append_row(workdir / "results.jsonl", row)
    everything = rows.read_rows(workdir / "results.jsonl")
    rows.write_csv(workdir / "results.csv", everything)
    for key, value in row.items():
        print(f"{key:28} {value:.4g}" if isinstance(value, float) else f"{key:28} {value}")
    logging.info("Row %d of %s.", len(everything), workdir / "results.jsonl")


def describe(config: ConfigDict, folder: Path, shape: tuple[int, int, int]) -> str:
    """--dry_run: what would be held against what."""
    standards = {"images": config.data.source, "statistics": config.eval.reference, "a run": config.eval.paired_with}
    against = [f"{kind} {name}" for kind, name in standards.items() if name]
    by = f", by {config.eval.detector} as well" if config.eval.detector else ""
    count = len(list(folder.glob("image_*.png")))
    return f"{count} images of {shape} in {folder} against {', '.join(against) or 'nothing'}{by}."


def open_standards(config: ConfigDict, workdir: Path, shape: tuple[int, int, int]) -> Standards:
    """All that config.data.source, config.eval.reference and config.eval.detector allow; shape: (h, w, c) of images.

    Raises ValueError where there is nothing to hold a run against, another run (config.eval.paired_with) included, and
    for statistics of images of another size.
    """
    photographs = open_photographs(config, shape)
    judge = judges.open_judge(config, workdir, photographs.training if photographs else None)
    statistics = None
    wanted = photographs or _names_statistics(config) or (judge is None and not config.eval.paired_with)
    if wanted and processes.is_first():
        statistics = open_statistics(config, workdir, photographs)
        reference.check_shape(shape, statistics)
    return Standards(statistics, photographs, judge)


def measure(
    folder: Path,
    statistics: reference.Reference | None,
    photographs: Photographs | None,
    judge: judges.Judge | None = None,
) -> dict[str, Any]:
    """The row of a finished run in `folder`, and a plot of its spectrum there; without statistics, its cost alone."""
    images, record = read_run(folder)
    row: dict[str, Any] = {"n": len(images)}
    if judge is not None:
        row |= judges.scores(judge, images, paired_run.image_indices(folder))
        if statistics is not None and len(images) <= len(statistics.block_moments.mean):
            logging.info("%d images are too few for the block means' covariance: left out.", len(images))
            statistics = None
    if not processes.is_first():
        return row
    if statistics is not None:
        row |= reference.scores(images, statistics)
        if photographs is not None:
            row |= _against_images(images, photographs, statistics.block)
        _plot(folder / "spectrum.png", images, statistics)
    session, sampling = record["sessions"][-1], record["settings"]["config"]["sampling"]
    return row | {
        "method": sampling["method"],
        **({"pds_mode": sampling["pds_mode"]} if sampling["method"] == "pds" else {}),
        **({"grid": ",".join(f"{s:.5g}" for s in session["grid"])} if session.get("grid") else {}),
        "steps": len(session["grid"]) - 1 if session.get("grid") else sampling.get("num_steps") or None,
        "calls": session.get("calls"),
        "gradient_calls": session.get("gradient_calls"),
        **cost(record["sessions"], len(images)),
        "folder": str(folder),
        "seed": record["settings"]["seed"],
        "checkpoint": record["settings"]["weights"][:12],
        "machine": rows.machine(),
        "command": " ".join(sys.argv),
        "config": read_png(folder / f"image_{paired_run.image_indices(folder)[0]}.png").text.get("config"),
    }


def cost(sessions: Sequence[Mapping[str, Any]], n: int) -> dict[str, float | None]:
    """What n images of a run took, from its sessions: columns of a result row.

    compile_seconds: tracing and compiling, 0 where this process had the program already. steady_seconds: all the rest;
    what a killed session took is not known, so the rate of the others stands for its images. peak_memory: bytes of
    the sampling program on a device, by the compiler's analysis. None where nothing is known.
    """
    ended = [part for part in sessions if "seconds" in part]
    written, steady = sum(part["images_written"] for part in ended), sum(part["seconds"]["steady"] for part in ended)
    return {
        "compile_seconds": sum(part["seconds"]["compile"] for part in ended),
        "steady_seconds": steady * n / written if written else None,
        "peak_memory": max((part["peak_memory"] for part in ended if part.get("peak_memory")), default=None),
    }


def open_photographs(config: ConfigDict, shape: tuple[int, int, int]) -> Photographs | None:
    """The images of config.data.source as training would see them, (h, w, c); None where no source is named."""
    data = config.data
    if not data.source:
        return None
    images, _ = load_images(create_source(data.source, data.split), shape[0], shape[2])
    held_out = np.arange(len(images)) % data.holdout == 0 if data.holdout else np.zeros(len(images), bool)
    return Photographs(images[~held_out], images[held_out])


def open_statistics(config: ConfigDict, workdir: Path, photographs: Photographs | None) -> reference.Reference:
    """config.eval.reference, or what is computed from the photographs; ValueError where there is neither."""
    if _names_statistics(config):
        return reference.load_reference(shipped(config.eval.reference))
    if photographs is None:
        raise ValueError(
            "There is nothing to compare with: set --config.eval.reference to a file of statistics "
            "(benchmarks/reference_statistics.py) or --config.data.source to the images."
        )
    computed = reference.compute_reference(photographs.training, Path(config.data.source).stem)
    workdir.mkdir(parents=True, exist_ok=True)
    reference.save_reference(workdir / "reference.npz", computed)
    return computed


def _names_statistics(config: ConfigDict) -> bool:
    """Whether config.eval.reference is one of block means, and not of a detector's features."""
    return bool(config.eval.reference) and not feature_reference.is_feature_file(shipped(config.eval.reference))


def _against_images(images: np.ndarray, photographs: Photographs, block: int) -> dict[str, float]:
    training, held_out = photographs
    features, theirs = block_means(images, block), block_means(training, block)
    covered = precision_recall(features, theirs)
    row = {"block_precision": covered.precision, "block_recall": covered.recall}
    distances = pyramid_distances(images, training)
    row |= {f"sliced_wasserstein_{side}": distance for side, distance in distances.items()}
    if len(held_out):
        found = nearest.memorisation(images, training, held_out)
        row |= {"memorisation_closer": found.closer, "memorisation_copies": found.copies}
    return row


def _plot(path: Path, images: np.ndarray, statistics: reference.Reference) -> None:
    """Radial power of samples and reference; without matplotlib, a line that says so."""
    power = {"samples": spectrum.radial_power(images).mean(axis=0)}
    try:
        plot_spectra(path, power, statistics.radial_power, statistics.name)
    except ImportError as error:
        logging.info("No plot of the spectrum: %s", error)
