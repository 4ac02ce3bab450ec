"""Time of one network call against the same network in PyTorch, as a ratio, on one CPU core.

python -m benchmarks.network_call --model_config configs/ve/cifar10_ncsnpp_continuous.py --batch 1 [--rounds 7]
    [--contenders ours,torch,torch_channels_last,torch_compile,torch_bfloat16] [--core 0]

Needs PyTorch (`pip install ".[torch]"`). All contenders load the same random weights. Each runs in a process of its
own, pinned to one core with one thread. All compile and warm up first, and their outputs are compared (below 1e-4
relative in float32, else the run stops). Then they take turns, one reading of at least half a second each a round.
Reported are medians over the rounds of wall time and of the process's CPU time; where other jobs share the core the
second is the fairer. Ratio: PyTorch's time over ours, above 1 where ours is faster. Appends to W/network_call.jsonl.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

_CONFIG = flags.DEFINE_string("model_config", "configs/ve/cifar10_ncsnpp_continuous.py", "The network.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images a call.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Readings a contender, in strict alternation.")
_CONTENDERS = flags.DEFINE_list("contenders", ["ours", "torch", "torch_channels_last"], "Who takes part; first: ours.")
_CORE = flags.DEFINE_integer("core", 0, "The core that all contenders are pinned to.")
_WORKDIR = flags.DEFINE_string("workdir", "out/network_call", "Weights, inputs, outputs and results go here.")
_CONTENDER = flags.DEFINE_string("contender", "", "For the processes that this script starts itself.")

TOLERANCE = 1e-4  # of outputs in float32, relative to the largest value
READING = 0.5  # seconds


def ours(folder: Path) -> Callable[[], np.ndarray]:
    """A compiled call of this toolkit's network."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    import run_lib
    from builders.devices import configure_jax
    from builders.model import create_network
    from checkpoints.base import unflatten

    configure_jax("float32")
    config = run_lib.load_config_file(_CONFIG.value)
    with np.load(folder / "flax.npz") as file:
        params = jax.device_put(unflatten(dict(file)))
    with np.load(folder / "inputs.npz") as file:
        x, labels = jax.device_put(file["x"]), jax.device_put(file["labels"])
    network = jax.jit(create_network(config).apply)
    return lambda: np.asarray(jax.block_until_ready(network({"params": params}, x, labels)))


def torch_eager(
    folder: Path, channels_last: bool = False, compiled: bool = False, half: bool = False
) -> Callable[[], np.ndarray]:
    """A call of the PyTorch peer in evaluation mode, without gradients."""
    import torch

    from benchmarks.peers.ncsnpp_torch import NCSNpp

    torch.set_num_threads(1)
    settings = json.loads((folder / "network.json").read_text())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = NCSNpp(settings["model"], settings["data"]).eval()
    with np.load(folder / "torch.npz") as file:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in file.items()})
    network = network.to(memory_format=layout)
    with np.load(folder / "inputs.npz") as file:
        x = torch.from_numpy(np.ascontiguousarray(file["x"].transpose(0, 3, 1, 2))).to(memory_format=layout)
        labels = torch.from_numpy(file["labels"])
    call: Any = torch.compile(network) if compiled else network

    def run() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return call(x, labels).float().numpy().transpose(0, 2, 3, 1)

    return run


CONTENDERS: dict[str, Callable[[Path], Callable[[], np.ndarray]]] = {
    "ours": ours,
    "torch": torch_eager,
    "torch_channels_last": lambda folder: torch_eager(folder, channels_last=True),
    "torch_compile": lambda folder: torch_eager(folder, channels_last=True, compiled=True),
    "torch_bfloat16": lambda folder: torch_eager(folder, channels_last=True, half=True),
}


def serve(name: str, folder: Path) -> None:
    """A contender's process: gets ready, reports, then takes one reading for every line it is sent."""
    os.sched_setaffinity(0, {_CORE.value})  # before any library counts the cores
    start = time.perf_counter()
    call = CONTENDERS[name](folder)
    loaded = time.perf_counter()
    np.save(folder / f"{name}.npy", call())
    first = time.perf_counter()
    call()
    calls = max(1, round(READING / (time.perf_counter() - first)))
    print(json.dumps({"load": loaded - start, "first_call": first - loaded}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            call()
        reading = {"wall": (time.perf_counter() - wall) / calls, "cpu": (time.process_time() - cpu) / calls}
        print(json.dumps(reading), flush=True)


class Contender:
    """The parent's end of a contender's process."""

    def __init__(self, name: str):
        command = [sys.executable, "-m", "benchmarks.network_call", *sys.argv[1:], f"--contender={name}"]
        self.name, self.readings = name, []  # type: ignore[var-annotated]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )
        self.start = self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"The contender {self.name} ended before it answered; its error is above.")

    def read(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.readings.append(self._answer())

    def median(self, kind: str) -> float:
        return statistics.median(reading[kind] for reading in self.readings)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def write_inputs(folder: Path) -> dict[str, Any]:
    """One set of random weights under both programs' names, one batch of noisy images; the facts of the network."""
    import models
    import run_lib
    from benchmarks.random_weights import random_weights
    from builders.model import create_network
    from checkpoints import fitting, names

    config = run_lib.load_config_file(_CONFIG.value)
    network = create_network(config)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    weights = random_weights(dict(fitting.shapes(models.param_shapes(network, shape))))
    np.savez(folder / "flax.npz", **weights)  # type: ignore[arg-type]
    np.savez(folder / "torch.npz", **names.torch_names(weights, models.module_order(network, shape)))  # type: ignore[arg-type]
    generator = np.random.default_rng(2)
    x = generator.normal(size=(_BATCH.value, *shape)).astype(np.float32)
    labels = generator.uniform(0.5, 2.0, _BATCH.value).astype(np.float32)
    np.savez(folder / "inputs.npz", x=x, labels=labels)
    data = config.data.to_dict() | {"centered": network.centered}
    (folder / "network.json").write_text(json.dumps({"model": config.model.to_dict(), "data": data}, default=str))
    return {"config": _CONFIG.value, "parameters": sum(weight.size for weight in weights.values())}


def errors(folder: Path) -> dict[str, float]:
    """Largest difference of each contender's output from ours, over our largest value."""
    reference = np.load(folder / "ours.npy")
    outputs = {name: np.load(folder / f"{name}.npy") for name in _CONTENDERS.value[1:]}
    return {name: float(np.abs(out - reference).max() / np.abs(reference).max()) for name, out in outputs.items()}


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    if _CONTENDER.value:
        return serve(_CONTENDER.value, folder)
    if unknown := sorted(set(_CONTENDERS.value) - set(CONTENDERS)):
        raise ValueError(f"--contenders: {unknown} is unknown; choose from {sorted(CONTENDERS)}.")
    if _CONTENDERS.value[0] != "ours":
        raise ValueError(f"--contenders={','.join(_CONTENDERS.value)} must begin with ours, what others are held to.")
    facts = write_inputs(folder)
    contenders = [Contender(name) for name in _CONTENDERS.value]
    differences = errors(folder)
    for name, error in differences.items():
        if error > TOLERANCE and "bfloat16" not in name:
            raise RuntimeError(f"{name} differs from ours by {error:.1e} of the largest value: it is another network.")
    for _ in range(_ROUNDS.value):
        for contender in contenders:
            contender.read()
    first = contenders[0]
    print(f"{facts['config']}: {facts['parameters']:,} parameters, batch {_BATCH.value}, one core, float32")
    print("| contender | CPU ms | wall ms | CPU ratio | wall ratio | first call s | difference |")
    print("|---|---|---|---|---|---|---|")
    for one in contenders:
        cpu, wall = (1000 * one.median(kind) for kind in ("cpu", "wall"))
        ratios = [one.median(kind) / first.median(kind) for kind in ("cpu", "wall")]
        difference = f"{differences[one.name]:.0e}" if one.name in differences else ""
        row = [one.name, f"{cpu:.1f}", f"{wall:.1f}", *(f"{r:.2f}" for r in ratios), f"{one.start['first_call']:.1f}"]
        print(f"| {' | '.join([*row, difference])} |")
        one.close()
    versions = {name: metadata.version(name) for name in ("jax", "torch", "numpy")}
    record = {
        **facts,
        "batch": _BATCH.value,
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "versions": versions,
        "differences": differences,
        "readings": {one.name: one.readings for one in contenders},
        "start": {one.name: one.start for one in contenders},
    }
    with open(folder / "network_call.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    app.run(main)
