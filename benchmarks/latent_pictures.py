"""The latent model that was trained here, sampled in several ways by the command line, as one captioned picture.

python -m benchmarks.latent_pictures --workdir W [--picture docs/images/latent_flowers64.png] [--checkpoint FILE]

Each row is a run in W/<row>, which the command that is printed draws; rows that are there are kept. The schedule and
the mask are made first. What is inpainted was drawn by the model itself, from other noise.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from reports.grids import comparison_grid
from reports.images import ByteImages, write_png
from reports.outputs import read_run

MAIN = Path(__file__).parent.parent / "main.py"
CONFIG = "configs/latent/flowers64.py"
COUNT = 8  # images a row
HOLE = slice(16, 48)  # pixels along each side of 64
# Label, folder below the work directory W, and what is asked for.
ROWS = (
    ("Heun, 99 calls", "heun", "{C} --method heun --steps 50"),
    ("UniPC, 10 calls", "unipc", "{C} --method unipc --steps 10 --config.sampling.grid=logsnr"),
    ("UniPC, 5 calls", "unipc5", "{C} --method unipc --steps 5 --config.sampling.grid=logsnr"),
    ("LD3, 5 calls", "ld3", "{C}:ld3 --steps 5 --config.sampling.schedule={W}/schedule/ld3/ld3_5.json"),
    ("plain, 100 calls", "pc", "{C} --method pc --steps 50"),
    ("PDS, 100 calls", "pds", "{C} --method pds --steps 50"),
    (
        "STSP2, inpainting",
        "stsp2",
        "{C}:inpainting --steps 20 --config.guidance.image={W}/given --config.guidance.mask={W}/mask.png",
    ),
)


def main(argv: list[str]) -> None:
    del argv
    workdir = Path(flags.FLAGS.workdir)
    call(workdir, "schedule", "--mode=train --config {C}:ld3 --steps 5", workdir / "schedule" / "ld3" / "ld3_5.json")
    spoilt = spoil(workdir)
    rows = {}
    for label, name, asked in ROWS:
        call(workdir, name, f"--config {asked} --num_samples {COUNT}", workdir / name / "eval" / "grid.png")
        rows[label] = read_run(workdir / name / "eval")[0]
    last = list(rows)[-1]
    rows = {label: images for label, images in rows.items() if label != last} | {"given": spoilt, last: rows[last]}
    shown = {label: images[: flags.FLAGS.columns] for label, images in rows.items()}
    write_png(flags.FLAGS.picture or workdir / "rows.png", comparison_grid(shown, caption=flags.FLAGS.caption))


def call(workdir: Path, name: str, asked: str, made: Path) -> None:
    """Runs a command line into W/<name>, unless it has left `made` there."""
    if made.exists():
        return
    words = shlex.split(asked.format(C=CONFIG, W=workdir))
    words += ["--workdir", str(workdir / name)]
    words += ["--checkpoint", flags.FLAGS.checkpoint] if flags.FLAGS.checkpoint else []
    print("python main.py", shlex.join(words), flush=True)
    subprocess.run([sys.executable, str(MAIN), *words], check=True)


def spoil(workdir: Path) -> ByteImages:
    """Draws what will be inpainted into W/given, and W/mask.png; returns it with its middle grey."""
    call(
        workdir,
        "other",
        "--config {C} --method heun --steps 20 --seeds 100-107",
        workdir / "other" / "eval" / "grid.png",
    )
    images = read_run(workdir / "other" / "eval")[0]
    known = np.full((*images.shape[1:3], 1), 255, np.uint8)
    known[HOLE, HOLE] = 0
    (workdir / "given").mkdir(exist_ok=True)
    for number, image in enumerate(images):
        write_png(workdir / "given" / f"{number}.png", image)
    write_png(workdir / "mask.png", known)
    return np.where(known[None] == 255, images, np.uint8(128))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("picture", "", 'The picture; "" is W/rows.png.')
    flags.DEFINE_string("checkpoint", "", 'Weights; "" are those that the config names.')
    flags.DEFINE_integer("columns", COUNT, "Images of each row that are shown.")
    flags.DEFINE_string("caption", "", "Below the picture.")
    app.run(main)
