"""--mode=evaluate in two processes: each shows its share to the detector, and the row is that of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_writers import tensor, write_zip
from evaluate_process import FEATURES
from test_builders_processes import finish, free_port

from builders import processes
from reports.outputs import RunFolder

PROGRAM = Path(__file__).parent / "evaluate_process.py"


@pytest.mark.parametrize(("count", "workers"), [(7, 2), (8, 2), (1, 3), (5, 4)])
def test_rows_of_all_shares_come_back_in_order(monkeypatch, count, workers):
    whole = np.arange(2 * count).reshape(count, 2)
    shares = [whole[processes.share(range(count), worker, workers) or [0]] for worker in range(workers)]
    most = -(-count // workers)

    def gathered(rows):
        assert len(rows) == most  # as the others' are
        return np.stack([np.resize(share, (most, 2)) if len(share) < most else share for share in shares])

    monkeypatch.setattr(jax, "process_count", lambda: workers)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gathered)
    for share in shares:
        np.testing.assert_array_equal(processes.collect(share, count), whole)


def prepare(workdir: Path) -> Path:
    """Nine drawn images, twelve real ones and the detector's weights."""
    rng = np.random.default_rng(0)
    sections = {"sampling": {"method": "unipc", "microbatch": 8}, "data": {}, "model": {}, "sde": {}}
    with RunFolder(workdir / "eval", {"seed": 1, "weights": "0" * 64, "config": sections}, {}) as folder:
        for index in range(9):
            folder.write(index, rng.integers(0, 256, (8, 8, 3), np.uint8), {"index": index})
        folder.flush()
        folder.finish({"calls": 1, "gradient_calls": 0, "seconds": {"compile": 0.0, "steady": 1.0}}, "")
    np.savez(workdir / "real.npz", arr_0=rng.integers(0, 256, (12, 8, 8, 3), np.uint8))
    weights = {"conv.weight": rng.normal(size=(FEATURES, 3, 1, 1)), "fc.weight": rng.normal(size=(1008, FEATURES))}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    weights["fc.bias"] = np.zeros(1008, np.float32)
    write_zip(workdir / "detector.pth", {name: tensor(value, name) for name, value in weights.items()}, weights)
    return workdir


def row_of(workdir: Path, count: int) -> dict:
    command = [sys.executable, PROGRAM, prepare(workdir), f"127.0.0.1:{free_port()}", count]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    finish(*(subprocess.Popen([*map(str, command), str(k)], **pipes) for k in range(count)))
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 1  # of the first process alone
    return rows[0]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_write_the_row_of_one(tmp_path):
    one, two = (row_of(tmp_path / str(count), count) for count in (1, 2))
    figures = [key for key in one if key.startswith(("fid", "kid", "inception"))]
    assert "fid@9" in figures and "kid" in figures and one["n"] == 9
    assert {key: two[key] for key in figures} == {key: one[key] for key in figures}
