"""What an image costs in memory and arithmetic, and how time scales with images, calls and devices.

    python -m benchmarks.scaling --part memory [--configs demo,cifar10,ffhq_256,ffhq]
    python -m benchmarks.scaling --part time

`memory` compiles one network call of 1 and of 2 images at full width and reads the compiler's own figures; nothing is
run. `time` draws the same images of the demo model on one and on two host devices at three microbatch sizes, in turn;
from the CPU seconds of one device it fits calls * groups * (a + b * microbatch) and says what that predicts for two:
where the sum over both devices comes out as predicted, two idle cores take half the time. Wall time is printed beside
it and means little on a busy machine, whose load is printed too. Prints tables; `--out` adds a JSON line.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import models
import run_lib
from builders.devices import configure_jax
from builders.model import create_network

CONFIGS = {
    "demo": "configs/ve/demo.py",
    "cifar10": "configs/ve/cifar10_ncsnpp_continuous.py",
    "ffhq_256": "configs/ve/ffhq_256_ncsnpp_continuous.py",
    "ffhq": "configs/ve/ffhq_ncsnpp_continuous.py",
}
MICROBATCHES = (4, 8, 16)
IMAGES, STEPS = 32, 5


def compiled_call(path: str, images: int) -> Any:
    """The compiled network call of so many images; of its parameters only the shapes are needed."""
    config = run_lib.resolve_config(path)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    network = create_network(config)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), models.param_shapes(network, shape)
    )
    x = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((images,), jnp.float32)
    return jax.jit(network.apply).lower({"params": params}, x, labels).compile()


def memory(name: str) -> dict[str, Any]:
    """Megabytes of the parameters, of a call beyond them with one image and with each further one; GFLOP an image."""
    one, two = (compiled_call(CONFIGS[name], images) for images in (1, 2))
    temporary = [call.memory_analysis().temp_size_in_bytes / 1e6 for call in (one, two)]
    return {
        "config": name,
        "parameters_mb": round(one.memory_analysis().argument_size_in_bytes / 1e6, 1),
        "first_image_mb": round(temporary[0], 1),
        "further_image_mb": round(temporary[1] - temporary[0], 1),
        "gflop": round(one.cost_analysis()["flops"] / 1e9, 1),
    }


class Seconds(NamedTuple):
    wall: float
    cpu: float  # of the process, all devices together


def seconds(model: run_lib.Model, devices: int, microbatch: int) -> Seconds:
    """What IMAGES images take on so many host devices."""
    model.config.eval.batch_size = devices * microbatch
    wall, cpu = time.perf_counter(), time.process_time()
    run_lib.sample(model, {"method": "unipc", "num_steps": STEPS, "microbatch": microbatch}, range(IMAGES))
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def times(rounds: int) -> list[dict[str, Any]]:
    """Median seconds at each setting, read in turn, and what the model fitted on one device says of the CPU seconds."""
    model = run_lib.load(CONFIGS["demo"])
    settings = [(devices, microbatch) for microbatch in MICROBATCHES for devices in (1, 2)]
    for setting in settings:
        seconds(model, *setting)  # compiles
    readings = np.array([[seconds(model, *setting) for setting in settings] for _ in range(rounds)])
    medians = {setting: Seconds(*both) for setting, both in zip(settings, np.median(readings, axis=0), strict=True)}
    # cpu / (calls * groups) = a + b * microbatch, by least squares on the readings of one device
    groups = np.array([-(-IMAGES // microbatch) for microbatch in MICROBATCHES])
    per_call = np.array([medians[1, microbatch].cpu for microbatch in MICROBATCHES]) / (STEPS * groups)
    slope, offset = np.polyfit(MICROBATCHES, per_call, 1)
    rows = []
    for (devices, microbatch), (wall, cpu) in medians.items():
        waves = -(-IMAGES // (devices * microbatch))
        predicted = STEPS * waves * devices * (offset + slope * microbatch)
        rows.append(
            {
                "devices": devices,
                "microbatch": microbatch,
                "wall s": round(wall, 3),
                "CPU s, all devices": round(cpu, 3),
                "model": round(float(predicted), 3),
                "CPU over model": round(float(cpu / predicted), 3),
                "wall gain": round(medians[1, microbatch].wall / wall, 2),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |")


def main(argv: list[str]) -> None:
    del argv
    configure_jax("float32")
    if flags.FLAGS.part == "memory":
        rows = [memory(name) for name in flags.FLAGS.configs]
    else:
        rows = times(flags.FLAGS.rounds)
    show(rows)
    load = os.getloadavg()[0]
    print(f"load {load:.1f} on {os.cpu_count()} cores")
    if flags.FLAGS.out:
        with Path(flags.FLAGS.out).open("a") as file:
            file.write(json.dumps({"part": flags.FLAGS.part, "load": load, "rows": rows}) + "\n")


if __name__ == "__main__":
    flags.DEFINE_enum("part", "memory", ["memory", "time"], "What to measure.")
    flags.DEFINE_list("configs", list(CONFIGS), "Of --part=memory.")
    flags.DEFINE_integer("rounds", 5, "Readings of each setting of --part=time.")
    flags.DEFINE_string("out", "", "File that a JSON line is added to.")
    app.run(main)
