"""The only training loop: batches in, updates out, everything a function of (seed, step).

A method supplies `loss_fn(params, batch, keys) -> [b]`, one loss an image with one key an image; the loop takes
gradients by microbatches, clips, steps, averages, saves and logs. A run that is killed resumes from its last saved
state and goes on bit for bit as if it had not been; on another number of devices it goes on to rounding, since the
gradients of the parts of a batch are then summed in another order.

A batch is split over the devices of all processes, and one process writes. Every process makes the whole batch, which
is a function of its number, and puts its own devices' part on them.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from array_types import Keys, PerImage
from training.devices import data_mesh
from training.state import TrainState, load_state, save_state

LossFn = Callable[[Any, dict[str, jax.Array], Keys], PerImage]
LOG_FILE = "train_log.jsonl"


@runtime_checkable
class BatchSource(Protocol):
    """Batch number `step`, a function of nothing else (`data.pipeline.Batches`)."""

    def batch(self, step: int) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """config.training and config.optim, as far as the loop is concerned."""

    num_steps: int
    batch_size: int
    microbatch: int = 0
    ema_rate: float = 0.999
    log_every: int = 50
    sample_every: int = 10_000
    checkpoint_every: int = 10_000

    def __post_init__(self):
        if self.microbatch and self.batch_size % self.microbatch:
            raise ValueError(
                f"config.training.batch_size={self.batch_size} is not a multiple of "
                f"config.training.microbatch={self.microbatch}; choose one that divides it."
            )

    @property
    def calls(self) -> int:
        """Gradient calls an update."""
        return self.batch_size // self.microbatch if self.microbatch else 1


def create_optimizer(
    lr: float,
    beta1: float,
    eps: float,
    warmup: int,
    grad_clip: float,
    weight_decay: float,
    schedule: str,
    num_steps: int,
) -> optax.GradientTransformation:
    """Adam with linear warm-up and global-norm clipping, as score_sde trains.

    "cosine" and "linear" fall to 0 at num_steps.
    """
    if schedule not in ("constant", "cosine", "linear"):
        raise ValueError(f"config.optim.schedule={schedule!r} is unknown; choose 'constant', 'cosine' or 'linear'.")
    after = optax.constant_schedule(lr)
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, max(num_steps - warmup, 1))
    elif schedule == "linear":
        after = optax.linear_schedule(lr, 0.0, max(num_steps - warmup, 1))
    # The first update already moves: step n of the warm-up uses lr (n + 1) / warmup.
    ramp = optax.linear_schedule(lr / max(warmup, 1), lr, max(warmup - 1, 1))
    rate = optax.join_schedules([ramp, after], [warmup]) if warmup else after
    parts = [optax.clip_by_global_norm(grad_clip)] if grad_clip else []
    parts += [optax.scale_by_adam(b1=beta1, eps=eps)]
    parts += [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def ema_decay(step: jax.Array, rate: float) -> jax.Array:
    """Decay at update `step` (from 1): min(rate, (1 + n)/(10 + n)), so that early averages forget the start."""
    return jnp.minimum(rate, (1 + step) / (10 + step))


@functools.partial(jax.jit, static_argnames=("loss_fn", "count"), donate_argnames=("total",))
def _accumulate(loss_fn: LossFn, count: int, params, total, batch, key: jax.Array, first: jax.Array):
    """Adds this microbatch's share of the batch-mean loss and gradient to `total` = (loss, gradients)."""
    size = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(size))

    def mean_loss(params):
        return loss_fn(params, batch, keys).sum() / count

    return jax.tree.map(jnp.add, total, jax.value_and_grad(mean_loss)(params))


@functools.partial(jax.jit, static_argnames=("optimizer", "rate"), donate_argnames=("state",))
def _update(optimizer: optax.GradientTransformation, rate: float, state: TrainState, gradients):
    """One optimiser step and one step of the running average; also the gradient's global norm before clipping."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    decay = ema_decay(step, rate) if rate else 0.0
    ema_params = jax.tree.map(lambda ema, new: decay * ema + (1 - decay) * new, state.ema_params, params)
    return TrainState(step, params, ema_params, opt_state), optax.tree.norm(gradients)


def _place(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole, laid over the devices of all."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    make = jax.make_array_from_process_local_data
    return jax.tree.map(lambda leaf: make(sharding, np.asarray(leaf), np.shape(leaf)), tree)


def update_step(
    loss_fn: LossFn, optimizer, settings: LoopSettings, state: TrainState, batch: dict, key: jax.Array, sharding=None
) -> tuple[TrainState, jax.Array, jax.Array]:
    """One update from one batch: (state, loss, gradient norm). `key` is the run's; it is folded with the step.

    Microbatches are one jitted call each: a loop over them inside one program would run convolution gradients inside a
    `while`, which XLA's CPU backend does 20 times slower.
    """
    key = jax.random.fold_in(key, state.step)
    total = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    size = settings.batch_size // settings.calls
    for call in range(settings.calls):
        part = {name: value[call * size : (call + 1) * size] for name, value in batch.items()}
        part = _place(part, sharding) if sharding is not None else part
        total = _accumulate(loss_fn, settings.batch_size, state.params, total, part, key, np.int32(call * size))
    loss, gradients = total
    state, norm = _update(optimizer, settings.ema_rate, state, gradients)
    return state, loss, norm


def train(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    settings: LoopSettings,
    state: TrainState,
    batches: BatchSource,
    seed: int,
    folder: Path,
    on_sample: Callable[[TrainState], None] | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> TrainState:
    """Trains from the state saved in `folder` if there is one, else from `state`, up to `settings.num_steps` updates.

    The first process writes `train_state.msgpack` and one JSON line every `log_every` updates; it alone calls
    `on_sample`, every `sample_every` updates before the last, and `on_progress(step, loss)` at each log line. Raises
    FloatingPointError at a loss or a gradient that is not finite; the last saved state is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mesh = data_mesh()
    per_call = settings.batch_size // settings.calls
    splits = per_call % jax.device_count() == 0
    if not splits:
        logging.warning(
            "%d images a gradient call do not divide by %d devices: every device computes all of them. Change "
            "--config.training.batch_size or --config.training.microbatch.",
            per_call,
            jax.device_count(),
        )
    sharding = NamedSharding(mesh, PartitionSpec("data" if splits else None))
    state = load_state(folder, state) or state
    # Committed to its sharding before the first call, or the first step compiles twice.
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = _place(state, everywhere)
    key = jax.random.wrap_key_data(_place(jax.random.key_data(jax.random.key(seed)), everywhere))
    first = jax.process_index() == 0
    losses, norms, started = [], [], time.perf_counter()
    for step in range(int(state.step), settings.num_steps):
        state, loss, norm = update_step(loss_fn, optimizer, settings, state, batches.batch(step), key, sharding)
        losses.append(loss)
        norms.append(norm)
        done = step + 1
        last = done == settings.num_steps
        logs, saves = done % settings.log_every == 0 or last, done % settings.checkpoint_every == 0 or last
        if logs or saves:
            # Before saving too: a state after a bad update must not replace the last good one.
            mean, mean_norm = (float(np.mean([float(value) for value in values])) for values in (losses, norms))
            if not np.isfinite([mean, mean_norm]).all():
                raise FloatingPointError(
                    f"The loss is {mean} at update {done}, the gradient's norm {mean_norm}; the state of the last "
                    f"checkpoint in {folder} is kept. Lower --config.optim.lr or set --config.optim.grad_clip."
                )
        if logs and first:
            seconds = (time.perf_counter() - started) / len(losses)
            line = {"step": done, "loss": mean, "grad_norm": mean_norm}
            with (folder / LOG_FILE).open("a") as file:
                file.write(json.dumps(line | {"seconds_per_step": round(seconds, 4)}) + "\n")
            if on_progress:
                on_progress(done, mean)
        if logs:
            losses, norms, started = [], [], time.perf_counter()
        if saves and first:
            save_state(folder, state)
        if on_sample and first and done % settings.sample_every == 0 and done < settings.num_steps:
            on_sample(state)
    return state
