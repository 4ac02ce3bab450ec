"""One update of a published DSNO student at its full size, with random weights: time and memory on this machine.

python -m benchmarks.dsno_step [--preset cifar10_dsno_t4] [--precision float32] [--batch 1]

The network of configs/vp/v_diffusion/<preset>.py with its temporal layers, Adam and the average of the weights; `batch`
trajectories of M points an update. The first update compiles, the second is timed. Appends a JSON line to
W/dsno_step.jsonl.
"""

import importlib
import json
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import run_lib
from builders import dsno as builder
from builders import students
from builders.model import create_denoiser, create_network
from builders.student_samplers import create_operator
from builders.training import loop_settings
from reports import rows
from training import dsno, loop
from training.state import create_state


def main(argv: list[str]) -> None:
    del argv
    asked = flags.FLAGS
    run_lib.configure_jax(asked.precision)
    config = importlib.import_module(f"configs.vp.v_diffusion.{asked.preset}").get_config()
    config.precision = asked.precision
    own = config.dsno
    times, _ = dsno.stored_times(own.spacing, own.teacher_steps, own.num_times)
    students.become_operator(config, tuple(times))
    config.training.update(batch_size=asked.batch, microbatch=0)
    side, classes = config.data.image_size, config.data.num_classes
    network = create_network(config)
    x = jnp.zeros((len(times), side, side, 3))
    params = jax.jit(network.init)(jax.random.key(0), x, jnp.ones(len(x)))["params"]
    operator, settings = create_operator(create_denoiser(config, params), config), builder.loss_settings(config)

    def loss(params, batch, keys):
        told = create_operator(create_denoiser(config, params), config)
        told = told.given(classes=batch["label"]) if classes else told
        return dsno.loss(settings, told, batch["noise"], batch["frames"])

    generator = np.random.default_rng(0)
    shape = (asked.batch, side, side, 3)
    frames = generator.uniform(-1, 1, (asked.batch, len(times), *shape[1:])).astype(np.float32)
    batch = {"noise": generator.standard_normal(shape).astype(np.float32), "frames": frames}
    batch["label"] = np.zeros(asked.batch, np.int32)
    optimizer = loop.create_optimizer(num_steps=config.training.num_steps, **config.optim.to_dict())
    count = sum(leaf.size for leaf in jax.tree.leaves(operator.params))
    state = create_state(params, optimizer)
    del params, operator
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        state, value, _ = loop.update_step(loss, optimizer, loop_settings(config), state, batch, jax.random.key(0))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
        print(f"loss {float(value):.4g}, {seconds[-1]:.1f} s", flush=True)
    row = {
        "preset": asked.preset,
        "precision": asked.precision,
        "n": asked.batch,  # trajectories an update
        "seed": 0,
        "checkpoint": "random weights",
        "command": " ".join(sys.argv[1:]),
        "million_parameters": round(count / 1e6, 2),
        "first_update_s": round(seconds[0], 1),
        "update_s": round(seconds[1], 1),
        "peak_GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "finite": bool(np.isfinite(float(value))),
        "machine": rows.machine(),
    }
    Path(asked.workdir).mkdir(parents=True, exist_ok=True)
    rows.append_row(Path(asked.workdir) / "dsno_step.jsonl", row)
    print(json.dumps(row))


if __name__ == "__main__":
    flags.DEFINE_enum("preset", "cifar10_dsno_t4", ["cifar10_dsno_t4", "imagenet64_dsno_t4"], "Which student.")
    flags.DEFINE_string("precision", "float32", "As config.precision.")
    flags.DEFINE_integer("batch", 1, "Trajectories an update.")
    flags.DEFINE_string("workdir", "out/dsno_step", "The row goes here.")
    app.run(main)
