"""Reading a published checkpoint without PyTorch against `torch.load`: CPU seconds and memory.

    python -m benchmarks.load_checkpoint [--rounds 5]

Needs PyTorch (`pip install ".[torch]"`), which writes the file: the CIFAR-10 network of 62.8 M parameters as score_sde
saves it, with its running average and Adam's two moments, 1 GB. Each reading is a fresh process that imports what it
needs, then takes the time of one load with the file in the page cache: `run_lib.load` up to parameters on the device in
our layout, `torch.load` of the whole file, and the same through a memory map. Extra memory is the growth of the peak
over what was resident before the load. Medians; goals: at most 1.5 times `torch.load`, twice the model's size.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags

CONFIG = "configs/ve/cifar10_ncsnpp_continuous.py"
READERS = ("run_lib.load", "torch.load", "torch.load, mapped")


def write(path: Path) -> None:
    """The file, by PyTorch: {"optimizer", "model", "ema", "step"}."""
    import torch

    import run_lib
    from benchmarks.peers.ncsnpp_torch import NCSNpp

    config = run_lib.load_config_file(CONFIG)
    network = torch.nn.DataParallel(NCSNpp(config.model.to_dict(), config.data.to_dict()))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learnt)
    for parameter in learnt:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    ema = {"decay": 0.999, "num_updates": 1, "shadow_params": [parameter.detach().clone() for parameter in learnt]}
    state = {"optimizer": optimizer.state_dict(), "model": network.state_dict(), "ema": ema, "step": 1}
    torch.save(state, path)


def resident() -> float:
    """Megabytes of physical memory now (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def read(reader: str, path: Path) -> dict[str, float]:
    """One load in this process."""
    load: Any
    if reader == "run_lib.load":
        import jax

        import run_lib
        from builders.devices import configure_jax

        configure_jax("float32")
        jax.block_until_ready(jax.numpy.zeros(1))  # the backend is up

        def load() -> Any:
            return jax.block_until_ready(run_lib.load(CONFIG, path).denoiser.params)
    else:
        import torch

        def load() -> Any:
            return torch.load(path, map_location="cpu", weights_only=True, mmap="mapped" in reader)

    before, wall, cpu = resident(), time.perf_counter(), time.process_time()
    kept = load()
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del kept
    return seconds | {"extra_mb": peak - before}


def main(argv: list[str]) -> None:
    del argv
    path = Path(flags.FLAGS.workdir) / "checkpoint.pth"
    if flags.FLAGS.reader:
        print(json.dumps(read(flags.FLAGS.reader, path)))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    readings: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    for _ in range(flags.FLAGS.rounds):
        for reader in READERS:
            command = [sys.executable, "-m", "benchmarks.load_checkpoint", *sys.argv[1:], f"--reader={reader}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            readings[reader].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{path.stat().st_size / 1e6:.0f} MB, median of {flags.FLAGS.rounds}")
    print("| | CPU s | wall s | extra memory, MB |\n|---|---:|---:|---:|")
    for reader, found in readings.items():
        cpu, wall, extra = (statistics.median(one[key] for one in found) for key in ("cpu", "wall", "extra_mb"))
        print(f"| `{reader}` | {cpu:.2f} | {wall:.2f} | {extra:.0f} |")
    path.unlink()


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Readings of each.")
    flags.DEFINE_string("workdir", "out/load_checkpoint", "The file lies here meanwhile.")
    flags.DEFINE_string("reader", "", "For the processes that this script starts itself.")
    app.run(main)
