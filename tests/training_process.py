"""One process of a training run on given devices; started by test_training_devices.py.

python tests/training_process.py FOLDER UPDATES DEVICES COORDINATOR PROCESSES PROCESS
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from training import loop  # noqa: E402
from training.state import create_state  # noqa: E402


class Batches:
    def batch(self, step):
        return {"image": np.random.default_rng(step).normal(size=(8, 4, 4, 2)).astype(np.float32)}


def denoising(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 2), jnp.float32))(keys)
    hidden = jnp.tanh(jnp.einsum("bhwc,cd->bhwd", batch["image"] + noise, params["first"]))
    return jnp.square(jnp.einsum("bhwd,dc->bhwc", hidden, params["last"]) - batch["image"]).mean((1, 2, 3))


def main(folder: str, updates: int, devices: int, coordinator: str, processes: int, process: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.distributed.initialize(coordinator, processes, process)
    assert jax.device_count() == processes * devices
    weights = np.random.default_rng(0)
    params = {"first": weights.normal(size=(2, 16)).astype(np.float32)}
    params["last"] = weights.normal(size=(16, 2)).astype(np.float32)
    settings = loop.LoopSettings(updates, batch_size=8, microbatch=4, log_every=1, checkpoint_every=3, sample_every=3)
    optimizer = loop.create_optimizer(1e-2, 0.9, 1e-8, 2, 1.0, 0.0, "constant", 10)
    seen = []
    state = create_state(params, optimizer)
    state = loop.train(
        denoising, optimizer, settings, state, Batches(), 0, Path(folder), on_sample=lambda s: seen.append(int(s.step))
    )
    assert int(state.step) == updates
    assert process == 0 or not seen, "only the first process draws samples"


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4], *map(int, sys.argv[5:]))
