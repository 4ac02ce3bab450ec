"""The command line, in processes of its own: the published one word for word, and what a mistake looks like."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run_lib import WEIGHTS, published_masks, write_config

ROOT = Path(__file__).parent.parent


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """`python main.py ...`; compiled programs go below `folder`, not into the user's cache."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment.pop("DEBUG", None)
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_the_published_command_line_writes_what_was_asked_for(tmp_path):
    write_config(tmp_path / "theirs.py")
    published_masks(tmp_path)
    (tmp_path / "W" / "checkpoints").mkdir(parents=True)
    shutil.copy(WEIGHTS, tmp_path / "W" / "checkpoints" / "checkpoint.pth")
    line = "--config theirs.py --workdir W --speed_up 250 --freq_mask_path f.npy --space_mask_path s.npy --alpha 5"
    done = run(tmp_path, *line.split(), *"--eval_folder eval --num_samples 3".split())
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "W" / "eval").iterdir()}
    assert written == {"image_0.png", "image_1.png", "image_2.png", "samples_0.npz", "grid.png", "run.json"}
    record = json.loads((tmp_path / "W" / "eval" / "run.json").read_text())
    assert record["images"] == 3
    assert record["sessions"][0]["calls"] == 8  # int(1000 / 250) levels, a corrector and a predictor call each
    assert record["settings"]["config"]["sampling"]["alpha"] in (5.0, "5")
    assert "4 levels, 8 network calls an image, 3 images" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.sampling.snrr=1"], "snrr"),
        (["--mode=sample"], "No weights found"),
    ],
)
def test_a_mistake_is_one_line_without_a_traceback(tmp_path, arguments, message):
    config = write_config(tmp_path / "theirs.py")
    done = run(tmp_path, f"--config={config}", "--workdir=W", *arguments)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_with_the_same_bytes(tmp_path):
    config = write_config(tmp_path / "theirs.py")
    line = [f"--config={config}", f"--checkpoint={WEIGHTS}", "--speed_up=250", "--num_samples=64"]
    assert run(tmp_path, *line, "--workdir=whole").returncode == 0
    killed = start(tmp_path, *line, "--workdir=killed")
    while killed.poll() is None and not (tmp_path / "killed" / "eval" / "image_0.png").exists():
        time.sleep(0.001)
    killed.kill()
    killed.communicate()
    assert 0 < len(list((tmp_path / "killed" / "eval").glob("image_*.png"))) < 64  # else nothing is tested
    assert run(tmp_path, *line, "--workdir=killed").returncode == 0
    whole, resumed = (
        {p.name: p.read_bytes() for p in (tmp_path / d / "eval").glob("*.png")} for d in ("whole", "killed")
    )
    assert len(whole) == 65 and resumed == whole
