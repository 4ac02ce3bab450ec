import json
import zipfile

import checkpoint_writers as writers
import numpy as np
import pytest
from checkpoint_writers import tensor
from golden_files import golden_folder

import checkpoints
from checkpoints.torch_pickle import load, to_numpy

PDS = golden_folder("pds")
NAMES = sorted(path.stem for path in PDS.glob("*.pth"))
FOURIER = "module.all_modules.0.W"


def facts(name):
    return json.loads((PDS / f"{name}.json").read_text())["checkpoint"]


@pytest.mark.parametrize("name", NAMES)
def test_every_published_layout_has_the_recorded_names_shapes_and_types(name):
    checkpoint, recorded = checkpoints.read(PDS / f"{name}.pth"), facts(name)
    assert checkpoint.format == "score_sde_torch" and checkpoint.step == recorded["step"] == 1234
    found = [[key, list(array.shape), array.dtype.name] for key, array in checkpoint.raw.items()]
    assert found == recorded["state_dict_keys"]
    assert checkpoint.extra == {"ema_rate": recorded["ema_decay"], "ema_updates": recorded["ema_num_updates"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_ema_list_gets_the_recorded_names(name):
    checkpoint, order = checkpoints.read(PDS / f"{name}.pth"), facts(name)["ema_order"]
    shadow = load(PDS / f"{name}.pth")["ema"]["shadow_params"]
    assert len(shadow) == len(order)
    for key, stored in zip(order, shadow, strict=True):
        np.testing.assert_array_equal(checkpoint.ema[key], to_numpy(stored, key, name))
        assert not np.array_equal(checkpoint.ema[key], checkpoint.raw[key]), f"{key}: EMA and raw weights are the same"
    assert checkpoint.weights() is checkpoint.ema and checkpoint.weights(ema=False) is checkpoint.raw
    assert list(checkpoint.ema) == list(checkpoint.raw)


def test_the_fourier_frequencies_come_from_the_model_and_the_note_says_so():
    checkpoint = checkpoints.read(PDS / "ve_bedroom_tiny.pth")
    assert FOURIER not in facts("ve_bedroom_tiny")["ema_order"]
    np.testing.assert_array_equal(checkpoint.ema[FOURIER], checkpoint.raw[FOURIER])
    assert any("Fourier" in note for note in checkpoint.notes)
    assert not checkpoints.read(PDS / "vp_ddpm_tiny.pth").notes


def score_sde(shadow, **tree):
    """A small network: buffer, Fourier W, two layers, in score_sde's layout."""
    arrays = {
        "module.sigmas": np.ones(3),
        FOURIER: np.arange(4, dtype=np.float32),
        "module.all_modules.1.weight": np.ones((4, 4), np.float32),
        "module.all_modules.1.bias": np.ones(4, np.float32),
        "module.all_modules.2.NIN_0.W": np.ones((4, 2), np.float32),
    }
    model = {name: tensor(array, name) for name, array in arrays.items()}
    ema = {f"ema{i}": array for i, array in enumerate(shadow)}
    tree = {
        "optimizer": {"state": {0: {"exp_avg": tensor(np.ones(9, np.float32), "adam")}}},
        "model": model,
        "ema": {"decay": 0.9, "num_updates": 2, "shadow_params": [tensor(array, key) for key, array in ema.items()]},
        "step": 7,
    } | tree
    return tree, arrays | ema


SHADOW = [np.full(shape, 2.0, np.float32) for shape in [(4, 4), (4,), (4, 2)]]


def test_adam_moments_are_never_looked_at(tmp_path):
    tree, storages = score_sde(SHADOW)
    writers.write_zip(tmp_path / "c.pth", tree, storages)  # the storage "adam" is not in the file
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        assert "archive/data/adam" not in archive.namelist()
    assert float(checkpoints.read(tmp_path / "c.pth").ema["module.all_modules.2.NIN_0.W"][0, 0]) == 2


def test_an_ema_list_of_another_length_or_order_is_refused(tmp_path):
    path = tmp_path / "c.pth"
    writers.write_zip(path, *score_sde([np.zeros(4, np.float32), *SHADOW]))
    with pytest.raises(ValueError, match="c.pth: the EMA list has 4 tensors, the model 3 trained ones"):
        checkpoints.read(path)
    writers.write_zip(path, *score_sde([SHADOW[1], SHADOW[0], SHADOW[2]]))
    with pytest.raises(ValueError, match=r"in the place of 'module.all_modules.1.weight' has shape \(4,\)"):
        checkpoints.read(path)


def test_a_file_without_ema_says_that_it_has_none(tmp_path):
    tree, storages = score_sde(SHADOW)
    del tree["ema"]
    writers.write_zip(tmp_path / "c.pth", tree, storages)
    checkpoint = checkpoints.read(tmp_path / "c.pth")
    assert checkpoint.ema is None and checkpoint.weights() is checkpoint.raw
    assert any("no moving average" in note for note in checkpoint.notes)


def test_bare_state_dicts_are_told_apart_by_their_names(tmp_path):
    array = np.ones((2, 3, 3, 3), np.float32)
    for name, expected in [("input_blocks.0.0.weight", "openai_torch"), ("conv.weight", "torch_state_dict")]:
        writers.write_zip(tmp_path / "w.pt", {name: tensor(array, "0")}, {"0": array})
        checkpoint = checkpoints.read(tmp_path / "w.pt")
        assert checkpoint.format == expected and list(checkpoint.raw) == [name]


def test_another_layout_is_refused_with_its_keys(tmp_path):
    writers.write_zip(tmp_path / "w.pt", {"epoch": 3, "net": {}}, {})
    with pytest.raises(ValueError, match=r"w.pt holds a dict with the keys \['epoch', 'net'\]"):
        checkpoints.read(tmp_path / "w.pt")
    writers.write_zip(tmp_path / "w.pt", [1, 2], {})
    with pytest.raises(ValueError, match="holds a list"):
        checkpoints.read(tmp_path / "w.pt")
