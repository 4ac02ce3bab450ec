"""From the command to the first images: imports, a cold start, and one whose programs are in the compilation cache.

    python -m benchmarks.start [--rounds 3]

Each reading is a fresh process: `import run_lib` alone, and `main.py` drawing 16 images of the demo model in 10 calls
into an empty folder, with the cache empty and then filled. Medians of wall and of CPU seconds (user and system, all
threads); goals: 12 s cold, 5 s cached, 0.7 CPU s for the imports.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

ROOT = Path(__file__).parent.parent
LINE = ("main.py", "--config=configs/ve/demo.py:unipc", "--config.sampling.num_steps=10", "--num_samples=16")


class Reading(NamedTuple):
    wall: float
    cpu: float


def read(command: tuple[str, ...], cache: str) -> Reading:
    """Seconds of a process from its start to its end."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Reading(time.perf_counter() - begun, cpu)


def main(argv: list[str]) -> None:
    del argv
    readings: dict[str, list[Reading]] = {"import run_lib": [], "16 images, cold": [], "16 images, cached": []}
    for _ in range(flags.FLAGS.rounds):
        with tempfile.TemporaryDirectory() as folder:
            draw = (*LINE, "--config.eval.compare=")
            readings["import run_lib"].append(read(("-c", "import run_lib"), folder))
            readings["16 images, cold"].append(read((*draw, f"--workdir={folder}/cold"), f"{folder}/cache"))
            readings["16 images, cached"].append(read((*draw, f"--workdir={folder}/cached"), f"{folder}/cache"))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; median of {flags.FLAGS.rounds}")
    print("| | wall s | CPU s |\n|---|---:|---:|")
    for name, values in readings.items():
        wall, cpu = (statistics.median(part) for part in zip(*values, strict=True))
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 3, "Readings of each.")
    app.run(main)
