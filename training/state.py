"""The state of a training run, and its file: written whole or not at all, read back bit for bit."""

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

STATE_FILE = "train_state.msgpack"
State = TypeVar("State", bound=tuple)  # a NamedTuple of arrays, such as `TrainState`


class TrainState(NamedTuple):
    """Everything that a resumed run needs; batches and keys are functions of `step`."""

    step: jax.Array  # updates done, int32
    params: Any
    ema_params: Any  # running average of params; equal to params where ema_rate is 0
    opt_state: Any


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    params = jax.tree.map(jnp.array, params)  # copies: the loop donates its state, and the caller keeps their arrays
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def save_state(folder: Path, state: tuple) -> Path:
    """Writes `folder/train_state.msgpack` by rename, so that a crash or a full disk leaves the previous one."""
    path = folder / STATE_FILE
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(serialization.to_bytes(jax.tree.map(np.asarray, state)))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"Could not write {path}: {error}. The previous state is intact; free some space.") from error
    return path


def load_state(folder: Path, like: State) -> State | None:
    """The saved state with the structure of `like`, or None if there is none.

    Raises ValueError if the file belongs to another network or optimiser.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state = serialization.from_bytes(like, path.read_bytes())
        jax.tree.map(_check_shape, state, like)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} does not fit this config's network and optimiser ({error}); use another --workdir or delete it."
        ) from error
    return jax.tree.map(jnp.asarray, state)


def _check_shape(leaf: Any, like: Any) -> None:
    if np.shape(leaf) != np.shape(like):
        raise ValueError(f"shape {np.shape(leaf)} where {np.shape(like)} is expected")
