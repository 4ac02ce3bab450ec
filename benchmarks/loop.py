"""Time of whole samplers against that of their network calls: what the loop adds, and what fewer calls save.

    python -m benchmarks.loop [--rounds 5]

The demo model, one device, 16 images. Every sampler and a lone network call are compiled first and then read in turn;
figures are medians of CPU seconds of the process, which a busy machine disturbs least. `over calls` is a sampler's
time over its number of calls times the lone call (goal: at most 1.03 for `pc`); `gain` is the first sampler's time over
its own, beside the ratio of their calls (goal: within 5 %).
"""

import functools
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags

import run_lib
from builders.devices import configure_jax

IMAGES = 16
SAMPLERS = {
    "pc, 20 levels": {"method": "pc", "num_steps": 20},
    "pds, 10 levels": {"method": "pds", "num_steps": 10, "freq_mask_path": "natural", "alpha": "auto"},
    "unipc, 10 steps": {"method": "unipc", "num_steps": 10},
    "heun, 5 steps": {"method": "heun", "num_steps": 5},
    "unipc, 5 steps": {"method": "unipc", "num_steps": 5},
}


def cpu_seconds(function: Callable[[], object]) -> float:
    begun = time.process_time()
    jax.block_until_ready(function())
    return time.process_time() - begun


def main(argv: list[str]) -> None:
    del argv
    configure_jax("float32")
    model = run_lib.load("configs/ve/demo.py")
    model.config.eval.batch_size = IMAGES  # one device
    model.config.sampling.microbatch = IMAGES
    x, s = jnp.ones((IMAGES, *model.shape), jnp.float32), jnp.ones((IMAGES,), jnp.float32)
    call = jax.jit(lambda denoiser, x, s: denoiser(x, s))
    calls = {name: run_lib.sample(model, settings, range(IMAGES)).nfe for name, settings in SAMPLERS.items()}
    jax.block_until_ready(call(model.denoiser, x, s))
    lone: list[float] = []
    readings: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for _ in range(flags.FLAGS.rounds):
        lone.append(cpu_seconds(lambda: [jax.block_until_ready(call(model.denoiser, x, s)) for _ in range(10)]) / 10)
        for name, settings in SAMPLERS.items():
            readings[name].append(cpu_seconds(functools.partial(run_lib.sample, model, settings, range(IMAGES))))
    one = statistics.median(lone)
    medians = {name: statistics.median(values) for name, values in readings.items()}
    first = next(iter(SAMPLERS))
    print(f"one call {1000 * one:.0f} CPU ms, {IMAGES} images, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| sampler | calls | CPU s | over calls | gain | ratio of calls |\n|---|---:|---:|---:|---:|---:|")
    for name, seconds in medians.items():
        gain, ratio = medians[first] / seconds, calls[first] / calls[name]
        over = seconds / (calls[name] * one)
        print(f"| {name} | {calls[name]} | {seconds:.2f} | {over:.2f} | {gain:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Readings of each.")
    app.run(main)
