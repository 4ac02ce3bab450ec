"""Several processes and any number of devices draw one set of images: the same bits, nothing lost, nothing twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_run_lib import WEIGHTS, write_config

import run_lib
from builders import processes
from builders.draw import blocks
from builders.processes import Cluster
from configs import base
from modes import sample
from reports.outputs import RunFolder
from run_lib import Request

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("count", "microbatch", "workers"), [(37, 8, 2), (5, 8, 3), (64, 1, 5), (16, 8, 2), (9, 4, 7)])
def test_whatever_is_left_is_shared_out_evenly_and_each_block_once(count, microbatch, workers):
    config = base.get_config()
    config.sampling.microbatch = microbatch
    every = blocks(config, range(100, 100 + count))
    assert [index for block in every for index in block] == list(range(100, 100 + count))
    left = [block for block in every if block[0] % 3]
    shares = [processes.share(left, worker, workers) for worker in range(workers)]
    assert sorted(block for share in shares for block in share) == left
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_block_is_drawn_if_any_of_its_images_is_missing():
    every = [[0, 1], [2, 3], [4]]
    assert sample.own_blocks(every, {1, 4}) == [[0, 1], [4]]
    assert sample.own_blocks(every, set()) == []


def test_a_process_that_keeps_no_record_leaves_that_of_the_first(tmp_path):
    with RunFolder(tmp_path, {"seed": 1}, {"command": "first"}):
        kept = (tmp_path / "run.json").read_bytes()
        with RunFolder(tmp_path, {"seed": 1}, {"command": "second"}, keeps_record=False) as other:
            other.write(3, np.zeros((4, 4, 3), np.uint8))
        assert (tmp_path / "run.json").read_bytes() == kept and (tmp_path / "image_3.png").exists()


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster("10.0.0.1:1234"), "--num_processes=None --process_id=None: give all three"),
        (Cluster("", 2, 0), "give all three"),
        (Cluster("10.0.0.1", 2, 0), "'10.0.0.1' is not HOST:PORT"),
        (Cluster("10.0.0.1:1234", 2, 2), "--process_id=2 with --num_processes=2: processes are numbered from 0 to 1"),
    ],
)
def test_a_cluster_that_is_not_one_is_refused(cluster, message):
    with pytest.raises(ValueError, match=message):
        processes.join(cluster)


def test_flags_are_asked_for_where_no_cluster_is_recognised(monkeypatch):
    def initialize(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="no cluster was recognised .*Name it with --coordinator=HOST:PORT"):
        processes.join(Cluster())


def test_a_mode_that_is_not_shared_is_refused():
    with pytest.raises(SystemExit, match="--mode=convert runs in one process; several share only"):
        run_lib.run("convert", Request(None, None, cluster=Cluster()))


def start(folder: Path, workdir: str, *more: str, devices: int = 1, method: str = "pds") -> subprocess.Popen:
    """`python main.py` on a published network of 16 pixels, with so many forced host devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, str(ROOT / "main.py"), f"--config={folder / 'theirs.py'}", f"--checkpoint={WEIGHTS}"]
    command += [f"--workdir={folder / workdir}", "--config.sampling.microbatch=2", f"--method={method}", *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_together(folder: Path, workdir: str, count: int, *more: str, devices: int = 1) -> list[subprocess.Popen]:
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}", *more]
    return [start(folder, workdir, *flags, f"--process_id={k}", devices=devices) for k in range(count)]


def finish(*started: subprocess.Popen) -> str:
    said = [process.communicate(timeout=500)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(said)
    return said[0]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "eval").iterdir() if path.suffix in (".png", ".npz")}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_config(folder / "theirs.py")
    return folder


SHORT = ("--speed_up=250", "--num_samples=13")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_two_and_eight_devices_and_two_processes_draw_the_same_files(home):
    finish(start(home, "one", *SHORT))
    one = files_of(home / "one")
    assert len(one) == 13 + 2
    for devices in (2, 8):
        finish(start(home, f"{devices}", *SHORT, devices=devices))
        assert files_of(home / f"{devices}") == one
    said = finish(*start_together(home, "processes", 2, *SHORT, devices=2))
    assert "on 4 cpu device(s) of 2 processes" in said
    assert files_of(home / "processes") == one
    record = json.loads((home / "processes" / "eval" / "run.json").read_text())
    assert len(record["sessions"]) == 1 and record["sessions"][0]["processes"] == 2 and record["images"] == 13


def drawn(folder: Path) -> dict[str, int]:
    """Each image that is there, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "eval").glob("image_*.png")}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed_and_three_or_one_finish_the_same_set(home, victim):
    long, workdir = ("--speed_up=100", "--num_samples=60"), f"killed{victim}"
    finish(start(home, f"whole{victim}", *long, devices=2))
    pair = start_together(home, workdir, 2, *long)
    while all(process.poll() is None for process in pair) and len(drawn(home / workdir)) < 5:
        time.sleep(0.001)
    pair[victim].send_signal(signal.SIGKILL)
    time.sleep(0.2)
    pair[1 - victim].send_signal(signal.SIGKILL)  # as a batch system ends the rest of a broken job
    for process in pair:
        process.communicate()
    before = drawn(home / workdir)
    assert 0 < len(before) < 60  # else nothing is tested
    finish(*(start_together(home, workdir, 3, *long) if victim else [start(home, workdir, *long, devices=8)]))
    after = drawn(home / workdir)
    assert {name: after[name] for name in before} == before  # nothing was drawn again
    assert files_of(home / workdir) == files_of(home / f"whole{victim}")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_store_of_pairs_that_two_processes_fill_has_the_bytes_of_one(home):
    line = ("--mode=pairs", "--steps=3", "--num_samples=11", "--config.pairs.shard_size=3", "--method=heun")
    finish(start(home, "pairs_one", *line))
    finish(*start_together(home, "pairs_two", 2, *line))
    one, two = (
        {path.name: path.read_bytes() for path in (home / w / "pairs").iterdir()} for w in ("pairs_one", "pairs_two")
    )
    assert len(one) == 4 + 1 and two == one
