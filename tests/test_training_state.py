"""The state's file: bit for bit, written whole or not at all, refused by another network."""

import errno
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.state import STATE_FILE, create_state, load_state, save_state

OPTIMIZER = optax.adam(1e-3)


def state_of(value, shape=(3,)):
    return create_state({"w": jnp.full(shape, value)}, OPTIMIZER)


def test_a_state_is_read_back_bit_for_bit(tmp_path):
    assert load_state(tmp_path, state_of(0.0)) is None
    state = state_of(1 / 3)._replace(step=jnp.int32(7))
    save_state(tmp_path, state)
    loaded = load_state(tmp_path, state_of(0.0))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(loaded), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("other", [state_of(0.0, (4,)), create_state({"v": jnp.zeros(3)}, OPTIMIZER)])
def test_the_state_of_another_network_is_refused(tmp_path, other):
    save_state(tmp_path, state_of(1.0))
    with pytest.raises(ValueError, match="does not fit this config's network and optimiser"):
        load_state(tmp_path, other)


def test_a_full_disk_leaves_the_previous_state(tmp_path, monkeypatch):
    save_state(tmp_path, state_of(1.0))

    def full(path, data):
        with open(path, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device.*The previous state is intact"):
        save_state(tmp_path, state_of(2.0))
    np.testing.assert_array_equal(load_state(tmp_path, state_of(0.0)).params["w"], 1)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_state_comes_to_its_place_by_one_rename(tmp_path, monkeypatch):
    save_state(tmp_path, state_of(1.0))

    def refuse(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("training.state.os.replace", refuse)
    with pytest.raises(OSError, match="Input/output error.*The previous state is intact"):
        save_state(tmp_path, state_of(2.0))
    np.testing.assert_array_equal(load_state(tmp_path, state_of(0.0)).params["w"], 1)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
