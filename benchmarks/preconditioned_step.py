"""What preconditioning adds to a step of the sampler at 32, 256 and 1024 px, on one CPU core or one GPU.

python -m benchmarks.preconditioned_step [--sizes 32,256,1024] [--rounds 5] [--network_calls 2] [--published] [--core 0]
python -m benchmarks.preconditioned_step --device gpu --precision bfloat16 --batch 4

A step is one noise level: a corrector and a predictor update, each with one network call. The updates are timed in the
sampler's own loop with a network that costs nothing, plain and with masks, in turn; the network of the published config
of that size is timed apart, on the same device with random weights. Added is the difference of the updates over the
time of a whole plain step. CPU time of the process with one thread, or time on a GPU; medians over the rounds. Masks
are made up: their values do not change the cost. `--published` lets the same updates in the order of the published
program (PyTorch, complex transforms) take turns too, after both have given the same M M^T of an image. Prints a table
and appends a JSON line to W/preconditioned_step.jsonl.
"""

import dataclasses
import functools
import json
import os
import statistics
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import models
import precond
import run_lib
from benchmarks.clock import seconds as seconds_of
from benchmarks.random_weights import random_weights
from builders.devices import configure_jax
from builders.draw import image_keys
from builders.model import create_network
from checkpoints import fitting
from checkpoints.base import unflatten
from precond.fourier import FourierPreconditioner
from sampling import base, predictor_corrector
from sde_lib import VESDE

_SIZES = flags.DEFINE_list("sizes", ["32", "256", "1024"], "Sides of the images, pixels.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Readings of every kind, in turn.")
_NETWORK_CALLS = flags.DEFINE_integer("network_calls", 2, "Readings of the network; 0 leaves it out.")
_PUBLISHED = flags.DEFINE_bool("published", False, "Also the published order, in PyTorch.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where it runs.")
_PRECISION = flags.DEFINE_string("precision", "float32", "Of the network, as config.precision.")
_BATCH = flags.DEFINE_integer("batch", 0, "Images a call; 0: 8 at 32 px, else 1.")
_CORE = flags.DEFINE_integer("core", 0, "The core that all of it runs on, on a CPU.")
_WORKDIR = flags.DEFINE_string("workdir", "out/preconditioned_step", "Results go here.")

NETWORKS = {  # side -> a published network, and images a call
    32: ("configs/ve/cifar10_ncsnpp_continuous.py", 8),
    256: ("configs/ve/ffhq_256_ncsnpp_continuous.py", 1),
    1024: ("configs/ve/ffhq_ncsnpp_continuous.py", 1),
}
KINDS = {"plain": (False, False), "frequency": (True, False), "space": (False, True), "both": (True, True)}
READING = 0.5  # seconds


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("sde",))
@dataclasses.dataclass(frozen=True)
class NoNetwork:
    """A score that costs one product."""

    sde: VESDE

    def score(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return -x / self.sde.sigma(t)[:, None, None, None] ** 2


def masks(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Per-frequency power falling as 1/f^2 and a per-pixel variance, [side, side, 3], positive."""
    f = np.fft.fftfreq(side)
    power = 1 / (1 + (side * side / 64) * (f[:, None] ** 2 + f[None, :] ** 2))
    pixels = np.random.default_rng(0).uniform(0.5, 1.0, (side, side, 1))
    return (np.repeat(values.reshape(side, side, 1), 3, axis=2) for values in (power, pixels))  # type: ignore[return-value]


def steps_of(kind: str, side: int, batch: int, levels: int) -> Callable[[], None]:
    """A compiled run over that many noise levels, the masks of `kind` set."""
    sde = VESDE(0.01, 50.0)
    chosen = [mask if use else None for mask, use in zip(masks(side), KINDS[kind], strict=True)]
    m = precond.create_preconditioner(chosen[0], chosen[1], alpha=5.0)
    settings = predictor_corrector.PredictorCorrector()
    sampler = predictor_corrector.create(settings, NoNetwork(sde), sde.levels(levels, 0.0), m, (side, side, 3))

    def run() -> None:
        operands, start = sampler.begin(image_keys(0, range(batch)))
        for state, _, _ in base.iterate_chunks(sampler.step, operands, start, sampler.rows, 2 * levels):
            jax.block_until_ready(state)

    return run


def published(side: int, batch: int, levels: int) -> Callable[[], None]:
    """The same run as the published program orders it, with both masks; another noise.

    Raises RuntimeError where its M M^T is not ours.
    """
    import torch

    from benchmarks.peers import pds_torch

    torch.set_num_threads(1)
    m = precond.create_preconditioner(*masks(side), alpha=5.0)
    assert isinstance(m, FourierPreconditioner)
    freq, space = (torch.from_numpy(np.array(mask).transpose(2, 0, 1)[None]).float() for mask in (m.freq, m.space))
    image = np.random.default_rng(1).normal(size=(batch, side, side, 3)).astype(np.float32)
    theirs = pds_torch.apply(torch.from_numpy(image.transpose(0, 3, 1, 2)), freq, space).numpy().transpose(0, 2, 3, 1)
    ours = np.asarray(m.apply(jnp.asarray(image)))
    if (gap := np.abs(theirs - ours).max() / np.abs(ours).max()) > 1e-4:
        raise RuntimeError(f"M M^T of the published order differs from ours by {gap:.1e} of its largest value.")
    sigmas = VESDE(0.01, 50.0).sigma(np.linspace(1, 0, levels + 1))

    def run() -> None:
        with torch.inference_mode():
            x = 50 * torch.randn(batch, 3, side, side)
            for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
                x = pds_torch.step(x, float(sigma), float(sigma_next), freq, space)

    return run


def network_of(side: int, batch: int) -> Callable[[], None]:
    """A compiled call of the published network of that size, with random weights."""
    config = run_lib.load_config_file(NETWORKS[side][0])
    config.precision = _PRECISION.value
    module = create_network(config)
    weights = random_weights(dict(fitting.shapes(models.param_shapes(module, (side, side, 3)))))
    params = jax.device_put(unflatten(weights))
    x, labels = jnp.ones((batch, side, side, 3), jnp.float32), jnp.ones((batch,), jnp.float32)
    network = jax.jit(module.apply)
    return lambda: jax.block_until_ready(network({"params": params}, x, labels))


def measure(side: int) -> dict[str, float]:
    """Seconds: of the updates of one step by kind, and of one network call ("network")."""
    batch, levels = _BATCH.value or NETWORKS[side][1], max(2, min(50, 2**21 // side**2))
    runs = {kind: steps_of(kind, side, batch, levels) for kind in KINDS}
    if _PUBLISHED.value:
        runs["published"] = published(side, batch, levels)
    for run in runs.values():
        run()
    calls = max(1, round(READING / seconds_of(runs["plain"])))
    readings: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(_ROUNDS.value):
        for kind, run in runs.items():
            readings[kind].append(seconds_of(run, calls) / levels)
    if _NETWORK_CALLS.value:
        network = network_of(side, batch)
        network()
        readings["network"] = [seconds_of(network) for _ in range(_NETWORK_CALLS.value)]
    return {kind: statistics.median(values) for kind, values in readings.items()}


def main(argv: list[str]) -> None:
    del argv
    if _DEVICE.value == "gpu" and _PUBLISHED.value:
        raise ValueError("--published is timed on a CPU; leave it out with --device=gpu.")
    if _DEVICE.value == "cpu":
        os.sched_setaffinity(0, {_CORE.value})
    jax.config.update("jax_platforms", "cuda" if _DEVICE.value == "gpu" else "cpu")
    configure_jax(_PRECISION.value)
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = " | ".join(f"{kind} ms" for kind in KINDS)
    theirs = " published ms | over ours |" if _PUBLISHED.value else ""
    print(f"| px | batch | network call ms | {kinds} | added, frequency | added, both |{theirs}")
    print("|---" * (11 if _PUBLISHED.value else 9) + "|")
    for side in map(int, _SIZES.value):
        seconds = measure(side)
        whole = seconds["plain"] + 2 * seconds.get("network", float("nan"))
        added = [(seconds[kind] - seconds["plain"]) / whole for kind in ("frequency", "both")]
        times = [f"{1000 * seconds.get(kind, float('nan')):.2f}" for kind in ("network", *KINDS)]
        row = [str(side), str(_BATCH.value or NETWORKS[side][1]), *times, *(f"{share:.2%}" for share in added)]
        if _PUBLISHED.value:
            row += [f"{1000 * seconds['published']:.2f}", f"{seconds['published'] / seconds['both']:.2f}"]
        print(f"| {' | '.join(row)} |", flush=True)
        record = {"side": side, "load": os.getloadavg()[0], "jax": metadata.version("jax"), **seconds}
        with open(folder / "preconditioned_step.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    app.run(main)
