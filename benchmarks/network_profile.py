"""Where the time of one network call goes: convolutions by their size, normalisation, the rest; on one CPU core.

    python -m benchmarks.network_profile --model_config configs/ve/cifar10_ncsnpp_continuous.py --batch 1 [--calls 20]

Compiles the network with random weights, runs it under JAX's profiler on one core and adds up what each instruction of
the compiled program took. What an instruction is follows from the program's own text: a convolution (with whatever XLA
has fused to it) and its arithmetic, a matrix product, a sum over pixels (the statistics of normalisations), or one that
only moves and maps values (normalisation, activation, resampling, sums, joins). Prints a table and the speed of the
convolutions at each size of their output, and the CPU time of a whole call: where it is much less than the sum, other
jobs took the core within the longest instructions, and convolutions are what the others leave of it.
"""

import glob
import os
import re
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

import models
import run_lib
from benchmarks.random_weights import random_weights
from builders.devices import configure_jax
from builders.model import create_network
from checkpoints import fitting
from checkpoints.base import unflatten

KINDS = ("convolution", "matrix product", "statistics", "maps and moves")


class Instruction(NamedTuple):
    """Of a compiled program."""

    kind: str  # of KINDS
    side: int = 0  # of a convolution's output, pixels
    flops: float = 0.0


def instructions(program: str) -> dict[str, Instruction]:
    """By name, what every instruction of a compiled program (its HLO text) is."""
    bodies: dict[str, list[str]] = {}
    current = ""
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            current = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            bodies[current] = []
        elif line.startswith(" "):
            bodies.setdefault(current, []).append(line)
    found = {}
    for body in bodies.values():
        for line in body:
            if match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
                called = re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
                lines = [line, *(inner for name in called for inner in bodies.get(name, []))]
                found[match[1]] = _classify(lines, body)
    return found


def _classify(lines: list[str], siblings: list[str]) -> Instruction:
    convolutions = [line for line in lines if " convolution(" in line]
    if convolutions:
        return _convolution(convolutions[0], [*lines, *siblings])
    text = "\n".join(lines)
    if " dot(" in text:
        return Instruction("matrix product")
    return Instruction("statistics" if re.search(r" reduce(-window)?\(", text) else "maps and moves")


def _convolution(line: str, siblings: list[str]) -> Instruction:
    """From `%c = f32[4,16,16,256]{..} convolution(%x, %kernel), window={size=3x3 ..}, dim_labels=b01f_01io->b01f`."""
    shape = _shape(line)
    kernel = re.findall(r"%?([\w.\-]+)", line[line.index(" convolution(") + len(" convolution(") :].split(")")[0])[-1]
    declared = next(
        (_shape(other) for other in siblings if re.match(rf"\s+(?:ROOT )?%?{re.escape(kernel)} = ", other)), ()
    )
    taps = [int(size) for size in (re.search(r"window=\{size=([\dx]+)", line) or ["", "1"])[1].split("x")]
    inputs = declared[-2] if len(declared) == 4 else 0
    count = 1.0
    for size in (*shape, *taps):
        count *= size
    return Instruction("convolution", shape[1] if len(shape) == 4 else 0, 2 * count * inputs)


def _shape(line: str) -> tuple[int, ...]:
    match = re.search(r" = \(?\w+\[([\d,]*)\]", line)
    return tuple(int(size) for size in match[1].split(",") if size) if match else ()


def profile(call: Any, calls: int) -> dict[str, float]:
    """Milliseconds of each instruction, by its name in the program: the least of all calls, each of which runs it once.

    Least, because another job that takes the core makes one of them longer and none shorter.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
    least: dict[str, float] = {}
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                least[event.name] = min(event.duration_ns / 1e6, least.get(event.name, float("inf")))
    return least


def main(argv: list[str]) -> None:
    del argv
    os.sched_setaffinity(0, {flags.FLAGS.core})
    jax.config.update("jax_platforms", "cpu")
    configure_jax("float32")
    config, batch = run_lib.load_config_file(flags.FLAGS.model_config), flags.FLAGS.batch
    network = create_network(config)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    params = jax.device_put(unflatten(random_weights(dict(fitting.shapes(models.param_shapes(network, shape))))))
    arguments = {"params": params}, jnp.ones((batch, *shape), jnp.float32), jnp.ones(batch, jnp.float32)
    compiled = jax.jit(network.apply).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    known = instructions(compiled.as_text() or "")
    spent = {name: ms for name, ms in profile(lambda: compiled(*arguments), flags.FLAGS.calls).items() if name in known}
    whole = sum(spent.values())
    cpu = []
    for _ in range(flags.FLAGS.calls):
        begun = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        cpu.append(1000 * (time.process_time() - begun))
    print(f"{flags.FLAGS.model_config}, batch {batch}, one core")
    print(f"{whole:.1f} ms in instructions, {statistics.median(cpu):.1f} CPU ms a call")
    print("| kind | ms | share | GFLOP | GFLOP/s |\n|---|---:|---:|---:|---:|")
    for kind in KINDS:
        names = [name for name in spent if known[name].kind == kind]
        show(kind, names, spent, known, whole)
        for side in sorted({known[name].side for name in names} - {0}, reverse=True):
            show(f"- {side} x {side} pixels", [n for n in names if known[n].side == side], spent, known, whole)


def show(title: str, names: list[str], spent: dict[str, float], known: dict[str, Instruction], whole: float) -> None:
    ms, flops = sum(spent[name] for name in names), sum(known[name].flops for name in names)
    speed = [f"{flops / 1e9:.2f}", f"{flops / ms / 1e6:.0f}"] if flops else ["", ""]
    print(f"| {title} | {ms:.1f} | {ms / whole:.0%} | {speed[0]} | {speed[1]} |")


if __name__ == "__main__":
    flags.DEFINE_string("model_config", "configs/ve/cifar10_ncsnpp_continuous.py", "The network.")
    flags.DEFINE_integer("batch", 1, "Images a call.")
    flags.DEFINE_integer("calls", 20, "Calls that are looked at.")
    flags.DEFINE_integer("core", 0, "The core that all of it runs on.")
    app.run(main)
