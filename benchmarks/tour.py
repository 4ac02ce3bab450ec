"""Five ways to fewer network calls, one captioned picture each, on the demo model:  ./run tour

python -m benchmarks.tour [--workdir out/tour]

Writes W/1_solvers.png to W/5_students.png and all of them as W/tour.png. Each column of a picture began from one draw
of noise. Pictures that are there already are kept, so a tour that was stopped goes on.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags, logging

import run_lib
from builders.config import apply_overrides
from metrics.paired import rmse
from reports.grids import comparison_grid
from reports.images import ByteImage, ByteImages, read_png, write_png

CONFIG = "configs/ve/demo.py"
SEEDS = range(8)
OTHER_SEEDS = range(100, 108)  # of the images that are spoilt, to be repaired
PAPER = 255
GAP = 28  # pixels between two pictures of the sheet
LABELS = 212  # pixels for the names of rows, the same in all pictures


class Row(NamedTuple):
    """A row of images: what the config file is asked for behind its colon, and changes to it."""

    method: str
    changes: dict[str, Any]


class Stop(NamedTuple):
    """A picture. Distances are to its last row, from equal noise."""

    name: str
    caption: str
    rows: Sequence[Row]
    distances: bool = True


def steps(count: int, **sampling: Any) -> dict[str, Any]:
    return {"sampling.num_steps": count} | {f"sampling.{key}": value for key, value in sampling.items()}


LONG = Row("heun", steps(20))
STOPS = (
    Stop(
        "1_solvers",
        "1. Solvers with memory (UniPC). Both upper rows ask the network ten times an image. The distance is to the "
        "last row, which follows the model's own flow closely: root mean square, of black to white.",
        (Row("ddim", steps(10)), Row("unipc", steps(10)), LONG),
    ),
    Stop(
        "2_preconditioning",
        "2. Preconditioned diffusion sampling (PDS) against the plain predictor-corrector sampler at as many calls, 50 "
        "noise levels instead of 1,000: less of the grain that large steps leave, and less contrast. Both add noise on "
        "the way, so that no image is the right one.",
        (Row("pc", steps(50)), Row("pds", steps(50))),
        distances=False,
    ),
    Stop(
        "3_splitting",
        "3. Operator splitting, with guidance: the middle of each given image is to be painted. In five steps a solver "
        "of order 4 blows up where guidance is strong; splitting, which takes guidance and network in turns, does not.",
        tuple(
            Row("inpainting", steps(count, method=method) | {"guidance.likelihood": "direct"})
            for method, count in (("plms4", 5), ("stsp2", 5), ("stsp2", 20))
        ),
    ),
    Stop(
        "4_learned_schedules",
        "4. Learned schedules (LD3). The same network, five calls in both upper rows; where the solver of the second "
        "steps was learned in minutes from the model's own images.",
        (Row("unipc", steps(5)), Row("ld3", steps(5)), LONG),
    ),
    Stop(
        "5_students",
        "5. Students: networks that were trained on their teacher's own paths, on two CPU cores, to do in four calls "
        "(progressive distillation) or in one (consistency) what it does in many. DDIM with as few calls is blurred.",
        (Row("ddim", steps(4)), Row("distilled", {}), Row("consistency", steps(1)), LONG),
    ),
)


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    folder, start = Path(flags.FLAGS.workdir), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for stop in STOPS:
        path = folder / f"{stop.name}.png"
        if not path.exists():
            write_png(path, picture(stop, folder))
        pictures.append(read_png(path).image)
        logging.info("%s, %.0f s so far", path, time.monotonic() - start)
    write_png(folder / "tour.png", sheet(pictures))
    print(f"{folder / 'tour.png'}: five pictures, each for itself beside it.")


def picture(stop: Stop, folder: Path) -> ByteImage:
    """Draws the rows of a stop; W/given and W/mask.png are made where an image has to be given."""
    drawn = {}
    if any(row.method == "inpainting" for row in stop.rows):
        drawn["given"] = spoil(folder)
    for row in stop.rows:
        model = open_row(row, folder)
        result = run_lib.sample(model, seeds=SEEDS)
        name = f"{model.config.sampling.method}, {result.nfe} call{'s' if result.nfe != 1 else ''}"
        drawn[name] = run_lib.to_pixels(model, result.images)
    rows = _labelled(drawn) if stop.distances else drawn
    return comparison_grid(rows, caption=stop.caption, label_width=LABELS)


def open_row(row: Row, folder: Path) -> run_lib.Model:
    """The model of a row, with its settings in its config."""
    config = run_lib.load_config_file(f"{CONFIG}:{row.method}")
    apply_overrides(config, row.changes)
    if row.method == "inpainting":
        config.guidance.image, config.guidance.mask = str(folder / "given"), str(folder / "mask.png")
    return run_lib.load(config)


def spoil(folder: Path) -> ByteImages:
    """Draws images from other noise and a mask that hides their middle. Returns what is given, hidden parts grey."""
    model = open_row(LONG, folder)
    images = run_lib.to_pixels(model, run_lib.sample(model, seeds=OTHER_SEEDS).images)
    (folder / "given").mkdir(exist_ok=True)
    for number, image in enumerate(images):
        write_png(folder / "given" / f"{number}.png", image)
    size = images.shape[1]
    known = np.full((size, size, 1), 255, np.uint8)
    known[size // 4 : -size // 4, size // 4 : -size // 4] = 0
    write_png(folder / "mask.png", known)
    return np.where(known[None] == 255, images, np.uint8(128))


def _labelled(drawn: dict[str, ByteImages]) -> dict[str, ByteImages]:
    *_, last = drawn.values()
    return {
        name if images is last or name == "given" else f"{name}, distance {rmse(images, last).mean():.3f}": images
        for name, images in drawn.items()
    }


def sheet(pictures: Sequence[ByteImage]) -> ByteImage:
    """Pictures of any width one below the other, on paper."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(picture, ((0, GAP), (0, width - picture.shape[1]), (0, 0)), constant_values=PAPER)
        for picture in pictures
    ]
    return np.concatenate(padded)


if __name__ == "__main__":  # the flags too: tests import two such programs into one process
    flags.DEFINE_string("workdir", "out/tour", "Pictures go here.")
    logging.set_verbosity(logging.INFO)
    app.run(main)
