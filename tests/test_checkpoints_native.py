import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import checkpoints
from checkpoints import native, safetensors_file
from checkpoints.base import unflatten

RANDOM = np.random.default_rng(0)
PARAMS = {
    "GaussianFourierProjection_0": {"W": 16 * RANDOM.standard_normal(8).astype(np.float32)},
    "Conv_0": {"kernel": RANDOM.standard_normal((3, 3, 2, 5)).astype(np.float32), "bias": np.ones(5, np.float32)},
    "step_table": np.arange(6, dtype=np.int32).reshape(2, 3),
}
CONFIG = {"model": {"name": "ncsnpp", "ch_mult": [1, 2], "sigma_max": 50.0}, "data": {"centered": False}}


def test_a_file_comes_back_bit_for_bit_with_config_and_extra(tmp_path):
    native.write(tmp_path / "w.safetensors", PARAMS, CONFIG, {"step": 12, "source_sha256": "ab"})
    checkpoint = checkpoints.read(tmp_path / "w.safetensors")
    assert checkpoint.format == "native" and checkpoint.config == CONFIG and checkpoint.step == 12
    assert checkpoint.extra["source_sha256"] == "ab" and checkpoint.notes == ()
    tree = unflatten(checkpoint.raw)
    for module, leaf in (("GaussianFourierProjection_0", "W"), ("Conv_0", "kernel"), ("Conv_0", "bias")):
        np.testing.assert_array_equal(tree[module][leaf], PARAMS[module][leaf], strict=True)
    np.testing.assert_array_equal(tree["step_table"], PARAMS["step_table"], strict=True)
    assert len(checkpoint.raw) == 4 and list(tmp_path.iterdir()) == [tmp_path / "w.safetensors"]


def test_equal_weights_give_equal_bytes_whatever_the_order(tmp_path):
    native.write(tmp_path / "a", PARAMS, CONFIG)
    native.write(tmp_path / "b", dict(reversed(PARAMS.items())), dict(reversed(CONFIG.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert checkpoints.read(tmp_path / "a").sha256() == checkpoints.read(tmp_path / "b").sha256()


def test_half_precision_rounds_the_matrices_and_spares_the_vectors(tmp_path):
    native.write(tmp_path / "half", PARAMS, CONFIG, half=True)
    native.write(tmp_path / "full", PARAMS, CONFIG)
    half = checkpoints.read(tmp_path / "half")
    assert {array.dtype for array in half.raw.values()} == {np.dtype(np.float32), np.dtype(np.int32)}
    assert half.notes and os.path.getsize(tmp_path / "half") < os.path.getsize(tmp_path / "full")
    np.testing.assert_array_equal(half.raw["GaussianFourierProjection_0/W"], PARAMS["GaussianFourierProjection_0"]["W"])
    gap = np.abs(half.raw["Conv_0/kernel"] / PARAMS["Conv_0"]["kernel"] - 1).max()
    assert 2**-14 < gap <= 2**-11
    assert safetensors.numpy.load_file(tmp_path / "half")["Conv_0/kernel"].dtype == np.float16


def test_a_value_beyond_float16_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="'Conv_0/kernel' has values up to 100000, beyond float16"):
        native.write(tmp_path / "w", {"Conv_0": {"kernel": np.full((2, 2), 1e5, np.float32)}}, {}, half=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, moment):
    path = tmp_path / "w.safetensors"
    native.write(path, PARAMS, CONFIG)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half_written(file, *_):
        file.write(b"\0" * 100)
        full()

    if moment == "write":
        monkeypatch.setattr(safetensors_file, "dump", half_written)
    else:
        monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match="No space left"):
        native.write(path, {"Conv_0": {"bias": np.zeros(3, np.float32)}}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_config_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config to be stored is not plain JSON"):
        native.write(tmp_path / "w", PARAMS, {"f": np.ones(2)})


def test_the_safetensors_package_reads_what_is_written_here(tmp_path):
    native.write(tmp_path / "w", PARAMS, CONFIG)
    tensors = safetensors.numpy.load_file(tmp_path / "w")
    np.testing.assert_array_equal(tensors["Conv_0/kernel"], PARAMS["Conv_0"]["kernel"], strict=True)
    with safetensors.safe_open(tmp_path / "w", "numpy") as file:
        assert json.loads(file.metadata()["config"]) == CONFIG


def test_what_the_safetensors_package_writes_is_read_here(tmp_path):
    arrays = {
        "a.weight": RANDOM.standard_normal((2, 3)),
        "b": np.array(True),
        "c": np.zeros((0, 2), np.float16),
        "d": np.arange(3, dtype=np.uint8),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "renamed.bin", {"format": "pt"})
    checkpoint = checkpoints.read(tmp_path / "renamed.bin")
    assert checkpoint.format == "safetensors" and checkpoint.config is None and checkpoint.extra == {"format": "pt"}
    assert set(checkpoint.raw) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.raw[name], array, strict=True)


def test_bfloat16_keeps_its_type(tmp_path):
    native.write(tmp_path / "w", {"a": np.array([1.5, -2.0], ml_dtypes.bfloat16)}, {})
    raw = checkpoints.read(tmp_path / "w").raw["a"]
    assert raw.dtype == ml_dtypes.bfloat16 and raw.astype(np.float32).tolist() == [1.5, -2.0]


def test_a_cut_file_names_the_tensor_and_a_cut_header_the_file(tmp_path):
    path = tmp_path / "w"
    native.write(path, PARAMS, CONFIG)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"w is truncated or damaged: tensor 'step_table' of shape \(2, 3\)"):
        checkpoints.read(path)
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="w has a broken safetensors header.*claims"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
    ],
)
def test_hostile_offsets_are_refused_by_name(tmp_path, entry):
    header = json.dumps({"bad": entry}).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(ValueError, match="tensor 'bad'"):
        checkpoints.read(tmp_path / "w")


@pytest.mark.parametrize("header", ['{"a": 3}', '{"a": {"dtype": "F31", "shape": [], "data_offsets": [0, 0]}}', "{]"])
def test_a_broken_header_is_refused(tmp_path, header):
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ValueError, match="broken safetensors header"):
        checkpoints.read(tmp_path / "w")


def test_metadata_of_another_version_or_incomplete_is_refused(tmp_path):
    metadata = {"format": native.FORMAT, "version": "2", "half": "false", "config": "{}", "extra": "{}"}
    for change, message in [
        ({}, "format version 2"),
        ({"config": "x"}, "incomplete or no JSON"),
        ({"extra": "3"}, "objects"),
    ]:
        safetensors.numpy.save_file({"a": np.ones(1)}, tmp_path / "w", metadata | change)
        with pytest.raises(ValueError, match=message):
            checkpoints.read(tmp_path / "w")
