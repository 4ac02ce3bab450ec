"""Time of one network call against the same network in other programs, as a ratio, on one CPU core or one GPU.

python -m benchmarks.network_call --model_config configs/ve/cifar10_ncsnpp_continuous.py --batch 1 [--rounds 7]
    [--contenders ours,torch,torch_channels_last,torch_compile,torch_bfloat16,original,depthwise] [--core 0]
    [--ceilings conv_xla,conv_onednn]
python -m benchmarks.network_call --model_config benchmarks/peers/unet2d.py:cifar10 --contenders ours,diffusers
python -m benchmarks.network_call --device gpu --batch 512 --ceilings matmul_bfloat16
    --contenders ours_bfloat16,torch_autotune,torch_graphs,ours,torch,ours_tf32,torch_tf32

Needs PyTorch (`pip install ".[torch]"`) for the contenders that are named after it, and diffusers for its own. All
contenders load the same random weights. Each runs in a process of its own, on a CPU pinned to one core with one thread.
All compile and warm up first, and their outputs are compared (below 1e-4 relative in float32, else the run stops). Then
they take turns, one reading of at least half a second each a round, inputs and outputs on the device, waited for at its
end. Reported are medians over the rounds of wall time and of the process's CPU time; where other jobs share the core
the second is the fairer, on a GPU it says nothing. Ratio: the other's time over the first one's, above 1 where ours is
faster; float32 is to be held against float32, bfloat16 against bfloat16. A ceiling takes part like a contender and is
one 3x3 convolution of 256 channels at 16 px, what most of these networks' arithmetic is made of, or a product of two
matrices of 8192: `GFLOP/s` of a network is to be held against it. Appends to W/network_call.jsonl.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

_CONFIG = flags.DEFINE_string("model_config", "configs/ve/cifar10_ncsnpp_continuous.py", "The network.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images a call.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Readings a contender, in strict alternation.")
_CONTENDERS = flags.DEFINE_list("contenders", ["ours", "torch", "torch_channels_last"], "Who takes part; first: ours.")
_CEILINGS = flags.DEFINE_list("ceilings", ["conv_xla"], "Convolutions that take turns with them.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where the calls are made.")
_CORE = flags.DEFINE_integer("core", 0, "The core that all contenders are pinned to on a CPU.")
_WORKDIR = flags.DEFINE_string("workdir", "out/network_call", "Weights, inputs, outputs and results go here.")
_CONTENDER = flags.DEFINE_string("contender", "", "For the processes that this script starts itself.")

TOLERANCE = 1e-4  # of outputs in float32, relative to the largest value
READING = 0.5  # seconds
CONVOLUTION = {"batch": 4, "side": 16, "channels": 256}  # of the ceilings
MATRIX = 8192


class Call(NamedTuple):
    """A contender that is ready: `run(n)` makes n calls and waits for the last, `read` brings what it gave as NHWC."""

    run: Callable[[int], Any]
    read: Callable[[Any], np.ndarray] = np.asarray


def of_jax(call: Callable[[], Any]) -> Call:
    import jax

    def run(count: int) -> Any:
        for _ in range(count):
            out = call()
        return jax.block_until_ready(out)

    return Call(run)


def choose_platform() -> None:
    """Before JAX is imported. A GPU is shared by all contenders, so no one takes its memory beforehand."""
    os.environ["JAX_PLATFORMS"] = "cuda" if _DEVICE.value == "gpu" else "cpu"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def ours(folder: Path, filters: str = "", precision: str = "float32") -> Call:
    """A compiled call of this toolkit's network; `filters` gives it the graph of the published program."""
    choose_platform()
    import jax

    import run_lib
    from benchmarks.peers import ncsnpp_original
    from builders.devices import configure_jax
    from builders.model import create_network
    from checkpoints.base import unflatten

    configure_jax(precision)
    if filters:
        ncsnpp_original.use(filters)
    config = run_lib.load_config_file(_CONFIG.value)
    config.precision = precision
    with np.load(folder / "flax.npz") as file:
        params = jax.device_put(unflatten(dict(file)))
    with np.load(folder / "inputs.npz") as file:
        x, labels = jax.device_put(file["x"]), jax.device_put(file["labels"])
    network = jax.jit(create_network(config).apply)
    return of_jax(lambda: network({"params": params}, x, labels))


def in_torch(
    folder: Path,
    of: str = "ncsnpp",
    channels_last: bool = False,
    compiled: str = "",
    half: bool = False,
    tf32: bool = False,
) -> Call:
    """A PyTorch network in evaluation mode, without gradients: the peer, or that of diffusers.

    compiled: mode of torch.compile; "" is eager. half: bfloat16 by autocast. tf32: on a GPU, in place of float32.
    """
    import torch

    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    device = "cuda" if _DEVICE.value == "gpu" else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = _of_diffusers(folder) if of == "diffusers" else _of_the_peer(folder)
    network = network.eval().to(device, memory_format=layout)
    with np.load(folder / "inputs.npz") as file:
        x = torch.from_numpy(np.ascontiguousarray(file["x"].transpose(0, 3, 1, 2))).to(device, memory_format=layout)
        labels = torch.from_numpy(file["labels"]).to(device)
    call: Any = torch.compile(network, mode=compiled) if compiled else network

    def run(count: int) -> Any:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            for _ in range(count):
                out = call(x, labels)
            if device == "cuda":
                torch.cuda.synchronize()
            return out.sample if of == "diffusers" else out

    return Call(run, lambda out: out.float().cpu().numpy().transpose(0, 2, 3, 1))


def _of_the_peer(folder: Path) -> Any:
    import torch

    from benchmarks.peers.ncsnpp_torch import NCSNpp

    settings = json.loads((folder / "network.json").read_text())
    network = NCSNpp(settings["model"], settings["data"])
    with np.load(folder / "torch.npz") as file:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in file.items()})
    return network


def _of_diffusers(folder: Path) -> Any:
    import torch
    from diffusers import UNet2DModel

    from benchmarks.peers import unet2d

    settings = unet2d.settings(_CONFIG.value.partition(":")[2] or "cifar10")
    network = UNet2DModel(**{key: value for key, value in settings.items() if key != "_class_name"})
    with np.load(folder / "flax.npz") as file:
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        weights = unet2d.state_dict(dict(file), shapes)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network


def convolution_inputs() -> tuple[np.ndarray, np.ndarray]:
    """A map [b, h, w, c] and a kernel [3, 3, c, c]."""
    batch, side, channels = CONVOLUTION["batch"], CONVOLUTION["side"], CONVOLUTION["channels"]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch, side, side, channels), np.float32)
    return x, generator.standard_normal((3, 3, channels, channels), np.float32)


def convolution_xla(folder: Path) -> Call:
    """The convolution as XLA compiles it."""
    choose_platform()
    import jax

    x, kernel = jax.device_put(convolution_inputs())
    convolve = jax.jit(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
    )
    return of_jax(lambda: convolve(x, kernel))


def matrices(folder: Path) -> Call:
    """A product of two large matrices of bfloat16, as XLA compiles it: what the card reaches at most."""
    choose_platform()
    import jax
    import jax.numpy as jnp

    left, right = (jax.random.normal(jax.random.key(i), (MATRIX, MATRIX), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)
    return of_jax(lambda: product(left, right))


def convolution_onednn(folder: Path, half: bool = False) -> Call:
    """The convolution as PyTorch has oneDNN do it."""
    import torch

    torch.set_num_threads(1)
    x, kernel = (torch.from_numpy(array) for array in convolution_inputs())
    x = x.permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    kernel = kernel.permute(3, 2, 0, 1).to(memory_format=torch.channels_last)
    if half:
        x, kernel = x.bfloat16(), kernel.bfloat16()

    def run(count: int) -> Any:
        with torch.inference_mode():
            for _ in range(count):
                out = torch.nn.functional.conv2d(x, kernel, padding=1)
            return out

    return Call(run, lambda out: out.float().numpy())


LAST = functools.partial(in_torch, channels_last=True)
CONTENDERS: dict[str, Callable[[Path], Call]] = {
    "ours": ours,
    "ours_tf32": functools.partial(ours, precision="tf32"),
    "ours_bfloat16": functools.partial(ours, precision="bfloat16"),
    "original": functools.partial(ours, filters="one_channel"),
    "depthwise": functools.partial(ours, filters="depthwise"),
    "torch": in_torch,
    "torch_channels_last": LAST,
    "torch_compile": functools.partial(LAST, compiled="default"),
    "torch_tf32": functools.partial(LAST, tf32=True),
    "torch_bfloat16": functools.partial(LAST, half=True),
    "torch_autotune": functools.partial(LAST, half=True, compiled="max-autotune"),
    "torch_graphs": functools.partial(LAST, half=True, compiled="reduce-overhead"),
    "diffusers": functools.partial(in_torch, of="diffusers"),
    "diffusers_channels_last": functools.partial(LAST, of="diffusers"),
    "diffusers_compile": functools.partial(LAST, of="diffusers", compiled="default"),
    "diffusers_bfloat16": functools.partial(LAST, of="diffusers", half=True),
}
ROUNDED = ("tf32", "bfloat16", "autotune", "graphs")  # in the names of those that are not held to float32's digits
_CONVOLVED = 2 * 9 * CONVOLUTION["batch"] * CONVOLUTION["side"] ** 2 * CONVOLUTION["channels"] ** 2
CEILINGS: dict[str, tuple[Callable[[Path], Call], int]] = {  # and their floating-point operations
    "conv_xla": (convolution_xla, _CONVOLVED),
    "conv_onednn": (convolution_onednn, _CONVOLVED),
    "conv_onednn_bfloat16": (functools.partial(convolution_onednn, half=True), _CONVOLVED),
    "matmul_bfloat16": (matrices, 2 * MATRIX**3),
}


def serve(name: str, folder: Path) -> None:
    """A contender's process: gets ready, reports, then takes one reading for every line it is sent."""
    if _DEVICE.value == "cpu":
        os.sched_setaffinity(0, {_CORE.value})  # before any library counts the cores
    start = time.perf_counter()
    call = (CONTENDERS | {key: make for key, (make, _) in CEILINGS.items()})[name](folder)
    loaded = time.perf_counter()
    found = call.run(1)
    first = time.perf_counter()
    if name in CONTENDERS:
        np.save(folder / f"{name}.npy", call.read(found))
    call.run(2)  # a graph is captured by the second call, not the first
    again = time.perf_counter()
    call.run(1)
    calls = max(1, round(READING / (time.perf_counter() - again)))
    print(json.dumps({"load": loaded - start, "first_call": first - loaded}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        call.run(calls)
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
    import jax

    import models
    import run_lib
    from benchmarks.random_weights import random_weights
    from builders.model import create_network
    from checkpoints import fitting, names
    from reports.cost import cost

    config = run_lib.load_config_file(_CONFIG.value)
    network = create_network(config)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    weights = random_weights(dict(fitting.shapes(models.param_shapes(network, shape))))
    np.savez(folder / "flax.npz", **weights)  # type: ignore[arg-type]
    if config.model.name == "ncsnpp":
        np.savez(folder / "torch.npz", **names.torch_names(weights, models.structure(network, shape).order))  # type: ignore[arg-type]
    generator = np.random.default_rng(2)
    x = generator.normal(size=(_BATCH.value, *shape)).astype(np.float32)
    labels = generator.uniform(0.5, 2.0, _BATCH.value).astype(np.float32)
    np.savez(folder / "inputs.npz", x=x, labels=labels)
    data = config.data.to_dict() | {"centered": getattr(network, "centered", False)}
    (folder / "network.json").write_text(json.dumps({"model": config.model.to_dict(), "data": data}, default=str))
    params = jax.eval_shape(network.init, jax.random.key(0), x[:1], labels[:1])
    flops = cost(network.apply, params, x, labels).flops
    count = sum(weight.size for weight in weights.values())
    return {"config": _CONFIG.value, "name": config.model.name, "parameters": count, "flops": flops}


def errors(folder: Path) -> dict[str, float]:
    """Largest difference of each contender's output from the first one's, over its largest value."""
    reference = np.load(folder / f"{_CONTENDERS.value[0]}.npy")
    outputs = {name: np.load(folder / f"{name}.npy") for name in _CONTENDERS.value[1:]}
    return {name: float(np.abs(out - reference).max() / np.abs(reference).max()) for name, out in outputs.items()}


def rounded(name: str) -> bool:
    return any(part in name for part in ROUNDED)


def check(kind: str) -> None:
    """Raises ValueError for contenders that are none, or that have no network of this architecture."""
    if unknown := sorted(set(_CONTENDERS.value) - set(CONTENDERS)):
        raise ValueError(f"--contenders: {unknown} is unknown; choose from {sorted(CONTENDERS)}.")
    if unknown := sorted(set(_CEILINGS.value) - set(CEILINGS)):
        raise ValueError(f"--ceilings: {unknown} is unknown; choose from {sorted(CEILINGS)}.")
    if not _CONTENDERS.value[0].startswith("ours"):
        raise ValueError(f"--contenders={','.join(_CONTENDERS.value)} must begin with ours, what others are held to.")
    if _DEVICE.value == "gpu" and (wrong := [name for name in _CEILINGS.value if "onednn" in name]):
        raise ValueError(f"--ceilings: {wrong} is for CPUs; on a GPU take matmul_bfloat16 or conv_xla.")
    other = {"ncsnpp": "diffusers", "unet2d": "torch"}.get(kind, "")
    if wrong := [name for name in _CONTENDERS.value if other and name.startswith(other)]:
        raise ValueError(
            f"--contenders: {wrong} has no {kind!r}; the PyTorch peer is an NCSN++, diffusers' network that of "
            "--model_config=benchmarks/peers/unet2d.py:cifar10 or :demo."
        )


def processor() -> str:
    """The name of the processor (Linux), else of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    if _CONTENDER.value:
        return serve(_CONTENDER.value, folder)
    facts = write_inputs(folder)
    check(facts.pop("name"))
    contenders = [Contender(name) for name in (*_CONTENDERS.value, *_CEILINGS.value)]
    differences = errors(folder)
    for name, error in differences.items():
        if error > TOLERANCE and not rounded(name) and not rounded(_CONTENDERS.value[0]):
            raise RuntimeError(f"{name} differs from ours by {error:.1e} of the largest value: it is another network.")
    for _ in range(_ROUNDS.value):
        for contender in contenders:
            contender.read()
    first, clock = contenders[0], "cpu" if _DEVICE.value == "cpu" else "wall"
    where = "one core" if _DEVICE.value == "cpu" else "one GPU"
    print(f"{facts['config']}: {facts['parameters']:,} parameters, batch {_BATCH.value}, {where}")
    print(f"{processor()}, load {os.getloadavg()[0]:.1f}")
    print("| contender | CPU ms | wall ms | CPU ratio | wall ratio | GFLOP/s | first call s | difference |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for one in contenders:
        cpu, wall = (1000 * one.median(kind) for kind in ("cpu", "wall"))
        is_ceiling = one.name in CEILINGS
        ratios = ["" if is_ceiling else f"{one.median(k) / first.median(k):.2f}" for k in ("cpu", "wall")]
        speed = (CEILINGS[one.name][1] if is_ceiling else facts["flops"]) / one.median(clock) / 1e9
        difference = f"{differences[one.name]:.0e}" if one.name in differences else ""
        row = [one.name, f"{cpu:.1f}", f"{wall:.1f}", *ratios, f"{speed:.0f}", f"{one.start['first_call']:.1f}"]
        print(f"| {' | '.join([*row, difference])} |")
        one.close()
    record = {
        **facts,
        "batch": _BATCH.value,
        "device": _DEVICE.value,
        "machine": processor(),
        "load": os.getloadavg()[0],
        "versions": {name: installed(name) for name in ("jax", "torch", "diffusers", "numpy")},
        "differences": differences,
        "readings": {one.name: one.readings for one in contenders},
        "start": {one.name: one.start for one in contenders},
    }
    with open(folder / "network_call.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    app.run(main)
