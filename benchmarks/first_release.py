"""Writes one small file of each format, as this release writes them:  python -m benchmarks.first_release FOLDER

weights (`model.safetensors`), masks (`freq.npy`, `space.npy` with their side files), a learned schedule
(`schedule.json`), a teacher's store (`pairs/`) and `expected.npz`: what the network answers to a ramp. Those of the
first release are in tests/goldens/first_release and must load for ever (CONTRIBUTING.md); another release adds its own
beside them where a format has changed.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import models
import run_lib
import sde_lib
from builders.model import create_network
from checkpoints import native
from configs import base
from data import store
from masks.files import write_mask
from sampling import learned, time_grids

SHAPE = (8, 8, 3)
S_MAX, S_MIN = 50.0, 0.01


def ramp() -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the network, images [2, h, w, c] and the noise scales [2] that it is told."""
    x = np.linspace(0, 1, 2 * int(np.prod(SHAPE)), dtype=np.float32).reshape(2, *SHAPE)
    return x, np.array([0.5, 5.0], np.float32)


def write_weights(path: Path) -> None:
    config = base.get_config()
    config.data.image_size = SHAPE[0]
    config.model.update(nf=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: generator.choice([-0.5, 0.0, 0.0, 0.5], leaf.shape).astype(np.float32),  # few bits when packed
        models.param_shapes(create_network(config), SHAPE),
    )
    native.write(path, params, json.loads(config.to_json_best_effort()), {"step": 1}, half=True)


def write_schedule(path: Path) -> None:
    sde = sde_lib.VESDE(S_MIN, S_MAX)
    grid = time_grids.make("edm", 3, S_MAX, S_MIN, sde)
    path.write_text(
        learned.to_json(learned.Schedule("unipc", grid, order=2, sde=learned.describe_sde(sde), training={"pairs": 4}))
    )


def write_store(folder: Path) -> None:
    sampler = {"method": "ddim", "num_steps": 3, "calls": 3}
    teacher = {"name": "mean", "sha256": "00", "predicts": "x0", "sde": {"name": "VESDE"}, "prior_scale": S_MAX}
    spec = store.Specification((2, 2, 3), count=3, seed=5, teacher=teacher, sampler=sampler, shard_size=2)
    made = store.create(folder, spec)
    for indices in made.pending():
        made.write(indices, np.asarray(made.noise(indices)) / 2, np.asarray(indices))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / "model.safetensors")
    frequency = np.abs(np.fft.fftfreq(SHAPE[0]))[:, None, None]
    write_mask(folder / "freq.npy", np.broadcast_to(9 - 8 * frequency, SHAPE), {"n": 2})
    write_mask(folder / "space.npy", np.broadcast_to(np.linspace(1, 3, SHAPE[0])[:, None, None], SHAPE), {"n": 2})
    write_schedule(folder / "schedule.json")
    write_store(folder / "pairs")
    model = run_lib.load(checkpoint=str(folder / "model.safetensors"))
    x, s = ramp()
    np.savez(folder / "expected.npz", denoised=np.asarray(model.denoise(jnp.asarray(x), jnp.asarray(s))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
