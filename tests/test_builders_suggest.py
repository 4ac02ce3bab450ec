"""A weight file without an architecture names the shipped configs that fit it."""

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_writers import tensor, write_zip
from golden_files import golden_folder

import run_lib
from builders import suggest
from checkpoints import Checkpoint


def file_of(raw, format="openai_torch"):
    return Checkpoint(format, raw, None, None, None, Path("weights.pt"), {}, ())


def released(name):
    shapes = json.loads((golden_folder("adm") / "adm_full_shapes.json").read_text())[name]["unet"]
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def test_configs_that_fit_are_named_and_each_network_is_tried_once():
    tried = []

    def fits(config):
        tried.append((config.model.nf, config.data.image_size, config.data.num_classes))
        return config.data.num_classes == 0 and config.model.learn_sigma

    found = suggest.fitting_configs(file_of(released("u256")), fits)
    names = ("lsun_bedroom", "lsun_cat", "lsun_horse", "u256")
    assert found == [f"configs/adm/{name}.py" for name in names]
    assert (192, 64, 1000) not in tried and (256, 512, 1000) not in tried, "another width of the first layer"
    # u256 and LSUN differ in dropout, the three of LSUN in nothing.
    assert tried.count((256, 256, 0)) == 3
    assert found[0] in suggest.question(file_of(released("u256")), fits)


def test_a_network_that_cannot_take_the_names_does_not_fit():
    def fits(config):
        raise ValueError("no such module")

    message = suggest.question(file_of(released("c64")), fits)
    assert message.startswith("weights.pt does not carry its architecture, and no shipped config has its tensors")


def test_load_without_a_config_asks_for_one(tmp_path):
    array = np.zeros((2, 3, 3, 3), np.float32)
    write_zip(tmp_path / "net.pt", {"input_blocks.0.0.weight": tensor(array, "0")}, {"0": array})
    with pytest.raises(ValueError, match=r"net.pt does not carry its architecture, and no shipped config"):
        run_lib.load(None, tmp_path / "net.pt")
