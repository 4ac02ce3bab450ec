import json

import numpy as np
import pytest
from flax import serialization
from golden_files import golden_folder

import checkpoints

PDS = golden_folder("pds")
NAMES = sorted(path.stem for path in PDS.glob("*.msgpack"))


@pytest.mark.parametrize("name", NAMES)
def test_every_published_state_has_the_recorded_parameters_twice(name):
    recorded = json.loads((PDS / f"{name}.json").read_text())["checkpoint"]
    checkpoint = checkpoints.read(PDS / f"{name}.msgpack")
    assert checkpoint.format == "score_sde_flax" and checkpoint.step == recorded["step"] == 4321
    for tensors in (checkpoint.raw, checkpoint.ema):
        assert sorted([key, list(array.shape)] for key, array in tensors.items()) == sorted(recorded["param_tree"])
        assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    assert sum(array.size for array in checkpoint.raw.values()) == recorded["n_parameters"]
    assert checkpoint.extra["ema_rate"] == pytest.approx(0.999)


@pytest.mark.parametrize("name", NAMES)
def test_ema_and_raw_weights_are_not_exchanged(name):
    state = serialization.msgpack_restore((PDS / f"{name}.msgpack").read_bytes())
    checkpoint = checkpoints.read(PDS / f"{name}.msgpack")
    for leaf in ("Conv_0/kernel", "Conv_1/bias"):
        module, kind = leaf.split("/")
        np.testing.assert_array_equal(checkpoint.ema[leaf], state["params_ema"][module][kind])
        np.testing.assert_array_equal(checkpoint.raw[leaf], state["optimizer"]["target"][module][kind])
        assert not np.array_equal(checkpoint.ema[leaf], checkpoint.raw[leaf])


def test_a_truncated_state_is_refused_with_its_name(tmp_path):
    whole, path = (PDS / f"{NAMES[0]}.msgpack").read_bytes(), tmp_path / "checkpoint_26"
    for length in (2, 50, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checkpoint_26 is no whole Flax msgpack file"):
            checkpoints.read(path)


def test_another_tree_is_refused_with_its_keys(tmp_path):
    path = tmp_path / "checkpoint_1"
    path.write_bytes(serialization.msgpack_serialize({"params": {"w": np.ones(2)}, "step": 1}))
    with pytest.raises(ValueError, match=r"no score_sde state.*\['params', 'step'\]"):
        checkpoints.read(path)


def test_a_model_state_that_is_left_out_is_noted(tmp_path):
    params = {"Conv_0": {"bias": np.ones(2, np.float32)}}
    state = {
        "optimizer": {"target": params},
        "params_ema": params,
        "model_state": {"batch_stats": {"mean": np.ones(1)}},
    }
    (tmp_path / "c").write_bytes(serialization.msgpack_serialize(state))
    checkpoint = checkpoints.read(tmp_path / "c")
    assert checkpoint.notes == ("model_state is not empty and is left out.",) and checkpoint.step is None
