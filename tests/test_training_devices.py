"""Training on one device, on several and in several processes is one training, to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from test_builders_processes import finish, free_port

from builders.processes import Cluster
from configs import base
from modes import train
from modes.request import Request

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}


def test_a_trainer_that_is_not_shared_is_refused(tmp_path):
    config = base.get_config()
    config.training.method = "dsno"
    with pytest.raises(ValueError, match="dsno is trained in one process; several share score_matching and classifier"):
        train.run(Request(config, tmp_path, cluster=Cluster()))


def run(folder: Path, updates: int, devices: int, processes: int = 1) -> np.ndarray:
    """Trains up to `updates` and returns the loss and the gradient's norm of every update so far."""
    command = [sys.executable, ROOT / "tests" / "training_process.py", folder, updates, devices]
    command += [f"127.0.0.1:{free_port()}", processes]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": ENVIRONMENT}
    finish(*(subprocess.Popen([*map(str, command), str(k)], **pipes) for k in range(processes)))
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, updates + 1))
    return np.array([[line["loss"], line["grad_norm"]] for line in lines])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_loss_is_that_of_one_device_whatever_it_is_resumed_on(tmp_path):
    alone = run(tmp_path / "one", 8, devices=1)
    np.testing.assert_allclose(run(tmp_path / "four", 8, devices=4), alone, rtol=2e-6)
    run(tmp_path / "changed", 3, devices=1, processes=2)
    run(tmp_path / "changed", 5, devices=4)
    np.testing.assert_allclose(run(tmp_path / "changed", 8, devices=1), alone, rtol=2e-6)


CONFIG = """
from configs.ve import demo


def get_config():
    config = demo.get_config()
    config.checkpoint = ""
    config.data.update(source="{source}", image_size=8, holdout=0)
    config.model.update(nf=8, ch_mult=(1, 1), num_res_blocks=1)
    config.training.update(batch_size=4, microbatch=0, num_steps=3, log_every=1, method="score_matching")
    return config
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_command_trains_in_two_processes_as_in_one(tmp_path):
    (tmp_path / "images").mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)):
        Pillow.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "small.py").write_text(CONFIG.format(source=tmp_path / "images"))
    line = [sys.executable, str(ROOT / "main.py"), "--mode=train", f"--config={tmp_path / 'small.py'}"]
    environment = ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    finish(subprocess.Popen([*line, f"--workdir={tmp_path / 'one'}"], **pipes))
    line += [f"--workdir={tmp_path / 'two'}", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    finish(*(subprocess.Popen([*line, f"--process_id={k}"], **pipes) for k in range(2)))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / part / "train_log.jsonl").open()] for part in ("one", "two")
    ]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert (tmp_path / "two" / "checkpoints" / "model.safetensors").exists()
