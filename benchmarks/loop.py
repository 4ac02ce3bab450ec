"""Time of whole samplers against that of their network calls: what the loop adds, and what fewer calls save.

    python -m benchmarks.loop [--rounds 5]

    python -m benchmarks.loop --images 512 --precision bfloat16      # on a GPU

The demo model, one device. Every sampler and a lone network call are compiled first and then read in turn; figures are
medians of CPU seconds of the process, which a busy machine disturbs least, or of seconds on a GPU. `over calls` is a
sampler's time over its number of calls times the lone call (goal: at most 1.03 for `pc`); `gain` is the first sampler's
time over its own, beside the ratio of their calls (goal: within 5 %).
"""

import functools
import os
import statistics

import jax
import jax.numpy as jnp
from absl import app, flags

import run_lib
from benchmarks.clock import seconds as seconds_of
from builders.devices import configure_jax

SAMPLERS = {
    "pc, 20 levels": {"method": "pc", "num_steps": 20},
    "pds, 10 levels": {"method": "pds", "num_steps": 10, "freq_mask_path": "natural", "alpha": "auto"},
    "unipc, 10 steps": {"method": "unipc", "num_steps": 10},
    "heun, 5 steps": {"method": "heun", "num_steps": 5},
    "unipc, 5 steps": {"method": "unipc", "num_steps": 5},
}


def main(argv: list[str]) -> None:
    del argv
    images, config = flags.FLAGS.images, run_lib.load_config_file("configs/ve/demo.py")
    configure_jax(flags.FLAGS.precision)
    config.precision = flags.FLAGS.precision
    model = run_lib.load(config)
    model.config.eval.batch_size = images  # one device
    model.config.sampling.microbatch = images
    x, s = jnp.ones((images, *model.shape), jnp.float32), jnp.ones((images,), jnp.float32)
    call = jax.jit(lambda denoiser, x, s: denoiser(x, s))
    calls = {name: run_lib.sample(model, settings, range(images)).nfe for name, settings in SAMPLERS.items()}
    jax.block_until_ready(call(model.denoiser, x, s))
    lone: list[float] = []
    readings: dict[str, list[float]] = {name: [] for name in SAMPLERS}
    for _ in range(flags.FLAGS.rounds):
        lone.append(seconds_of(lambda: call(model.denoiser, x, s), 10))
        for name, settings in SAMPLERS.items():
            readings[name].append(seconds_of(functools.partial(run_lib.sample, model, settings, range(images))))
    one = statistics.median(lone)
    medians = {name: statistics.median(values) for name, values in readings.items()}
    first = next(iter(SAMPLERS))
    device = jax.devices()[0].device_kind
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"one call {1000 * one:.4g} ms, {images} images, {device}, {load}")
    print("| sampler | calls | seconds | over calls | gain | ratio of calls |\n|---|---:|---:|---:|---:|---:|")
    for name, seconds in medians.items():
        gain, ratio = medians[first] / seconds, calls[first] / calls[name]
        over = seconds / (calls[name] * one)
        print(f"| {name} | {calls[name]} | {seconds:.2f} | {over:.2f} | {gain:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Readings of each.")
    flags.DEFINE_integer("images", 16, "Images a call.")
    flags.DEFINE_string("precision", "float32", "As config.precision.")
    app.run(main)
