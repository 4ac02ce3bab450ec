"""A sweep that is killed for real, at random moments, ends with the table of one that never was."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metrics import reference
from reports import rows

ROOT = Path(__file__).parent.parent
POINTS = 4
IMAGES = 14  # a point: two more than there are features
OF_THIS_RUN = ("folder", "command", "draw", "compile_seconds", "steady_seconds")


def start(workdir: Path, statistics: Path) -> subprocess.Popen:
    command = [sys.executable, "main.py", "--mode=sweep", "--config=configs/ve/analytic.py", f"--workdir={workdir}"]
    command += ["--config.data.image_size=8", "--config.sampling.microbatch=2", f"--num_samples={IMAGES}"]
    command += [f"--config.eval.reference={statistics}", "--sweep=method=ddim,heun", "--sweep=steps=3,40"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def progress(workdir: Path) -> int:
    """Files and rows that are there: what a kill can fall between."""
    return sum(1 for _ in workdir.glob("sweep/*/*")) + len(rows.read_rows(workdir / "results.jsonl"))


def table(workdir: Path) -> list[dict]:
    found = rows.read_rows(workdir / "results.jsonl")
    return [{key: value for key, value in row.items() if key not in OF_THIS_RUN} for row in found]


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_the_same_table(tmp_path):
    photographs = np.random.default_rng(9).integers(0, 256, (40, 8, 8, 3), np.uint8)
    statistics = tmp_path / "statistics.npz"
    reference.save_reference(statistics, reference.compute_reference(photographs, "noise"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, statistics).wait() == 0
    expected = table(whole)
    assert len(expected) == POINTS

    seed = random.SystemRandom().randrange(1 << 32)
    print(f"kills follow from random.Random({seed})")
    chance, kills = random.Random(seed), 0
    for _ in range(3):
        process, at = start(killed, statistics), progress(killed) + chance.randint(1, progress(whole) // 3)
        while process.poll() is None and progress(killed) < at:
            time.sleep(0.002)
        if process.poll() is None:
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() != 0
    assert kills >= 2
    assert start(killed, statistics).wait() == 0
    assert table(killed) == expected
    images = [
        {path.name: path.read_bytes() for path in folder.glob("sweep/*/image_*.png")} for folder in (whole, killed)
    ]
    assert images[0] == images[1]
    lines = [(folder / "results.csv").read_text().splitlines() for folder in (whole, killed)]
    assert [len(text) for text in lines] == [1 + POINTS] * 2 and lines[0][0] == lines[1][0]
