"""A long run that is killed again and again: is every image there once, with the bits of an undisturbed run?

    python -m benchmarks.soak [--num_samples 2000] [--kills 8] [--workdir out/soak]

Starts `main.py` on the demo model and ends it by SIGKILL at random moments of the first half of its images; the last
start is left alone. Then: the set is complete, no image was written again by a later start, the packed file holds what
the PNGs hold, and images drawn alone in another folder are the same files. The resident memory of every start is read
twice a second (Linux), so that a leak would show as growth over the last, longest one. Prints one JSON object and
writes it to W/soak.json.
"""

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from reports.images import read_png

ROOT = Path(__file__).parent.parent
LINE = ("--config=configs/ve/demo.py:unipc", "--config.sampling.num_steps=5", "--config.eval.compare=")
CHECKED = 48  # images that are drawn once more, alone
LOOK_EVERY = 0.5  # seconds


class Reading(NamedTuple):
    """Of a running program, at one moment."""

    seconds: float  # since its start
    images: int  # in the folder
    megabytes: float  # resident


def start(workdir: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "main.py", *LINE, f"--workdir={workdir}", *more]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def resident(process: subprocess.Popen) -> float:
    """Megabytes of physical memory; 0 when the process has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def images_of(folder: Path) -> dict[str, int]:
    """Name and time of writing of every image that is there."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "eval").glob("image_*.png")}


def watch(process: subprocess.Popen, folder: Path, until: float) -> list[Reading]:
    """Readings until the process ends or the folder holds `until` images."""
    begun, readings = time.monotonic(), []
    while process.poll() is None:
        here = len(images_of(folder))
        if megabytes := resident(process):
            readings.append(Reading(time.monotonic() - begun, here, megabytes))
        if here >= until:
            break
        time.sleep(LOOK_EVERY)
    return readings


def growth(readings: list[Reading], first: int) -> dict[str, float]:
    """Memory of a start from when it has drawn `first` images on: its beginning, its end, and the most at any time."""
    drawing = [reading.megabytes for reading in readings if reading.images >= readings[0].images + first]
    quarter = max(1, len(drawing) // 4)
    return {
        "first_quarter_mb": round(float(np.median(drawing[:quarter])), 1),
        "last_quarter_mb": round(float(np.median(drawing[-quarter:])), 1),
        "most_mb": round(max(drawing), 1),
        "readings": len(drawing),
    }


def soak(folder: Path, count: int, kills: int, seed: int) -> dict[str, Any]:
    """The figures of a run of `count` images. Raises AssertionError where an image is lost, repeated or another."""
    chosen = random.Random(seed)
    moments = sorted(chosen.uniform(0, count / 2) for _ in range(kills))
    written: dict[str, int] = {}
    sessions = []
    for moment in [*moments, float("inf")]:
        process = start(folder / "soaked", f"--num_samples={count}")
        readings = watch(process, folder / "soaked", moment)
        if moment < float("inf") and process.poll() is None:
            time.sleep(chosen.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
        code, before, written = process.wait(), written, images_of(folder / "soaked")
        repeated = [name for name, moment in before.items() if written.get(name) != moment]
        assert not repeated, f"{repeated} were lost or written again"
        expected = -signal.SIGKILL if moment < float("inf") else 0
        assert code == expected, f"main.py ended with {code}: see {folder}/soaked/log.txt"
        sessions.append({"new_images": len(written) - len(before), "seconds": round(readings[-1].seconds, 1)})
    assert set(written) == {f"image_{index}.png" for index in range(count)}, "the set is not complete"
    check_packed(folder / "soaked" / "eval", count)
    checked = sorted(chosen.sample(range(count), min(CHECKED, count)))
    code = start(folder / "alone", "--seeds", ",".join(map(str, checked))).wait()
    assert code == 0, f"main.py ended with {code}: see {folder}/*/log.txt"
    for name in images_of(folder / "alone"):
        one, other = (read_png(folder / part / "eval" / name).image for part in ("soaked", "alone"))
        assert np.array_equal(one, other), f"{name} is another image when it is drawn undisturbed"
    return {
        "images": count,
        "kills": kills,
        "seed": seed,
        "sessions": sessions,
        "left_by_kills": len([path for path in (folder / "soaked" / "eval").iterdir() if path.suffix == ".part"]),
        "equal_alone": len(checked),
        "memory_of_the_last": growth(readings, first=min(64, count // 8)),
    }


def check_packed(folder: Path, count: int) -> None:
    """The packed shards hold each image once, as its PNG has it."""
    indices: list[int] = []
    for path in sorted(folder.glob("samples_*.npz")):
        with np.load(path) as shard:
            indices += shard["index"].tolist()
            for row in range(0, len(shard["index"]), 97):
                image = read_png(folder / f"image_{shard['index'][row]}.png").image
                assert np.array_equal(shard["arr_0"][row], image), f"{path}, row {row} is not its PNG"
    assert sorted(indices) == list(range(count)), "the packed files do not hold each image once"


def main(argv: list[str]) -> None:
    del argv
    folder = Path(flags.FLAGS.workdir)
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    found = soak(folder, flags.FLAGS.num_samples, flags.FLAGS.kills, flags.FLAGS.seed)
    found |= {
        "seconds": round(time.monotonic() - began),
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "load": os.getloadavg()[0],
        "command": " ".join(sys.argv),
    }
    print(json.dumps(found, indent=1))
    (folder / "soak.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("num_samples", 2000, "Images of the run.")
    flags.DEFINE_integer("kills", 8, "How often it is killed.")
    flags.DEFINE_integer("seed", 0, "Of the moments at which it is killed.")
    flags.DEFINE_string("workdir", "out/soak", "Emptied first.")
    app.run(main)
