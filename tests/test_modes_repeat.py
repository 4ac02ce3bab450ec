"""An image is drawn again from what was written into it."""

import json

import numpy as np
import pytest

import run_lib
from configs import base
from configs.adm import c64
from configs.ve import analytic, demo
from modes import repeat
from reports.images import read_png, write_png
from run_lib import Request


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Images 2 and 5 of an unusual run, in a folder of their own."""
    workdir = tmp_path_factory.mktemp("original")
    config = analytic.get_config()
    config.data.image_size = 8
    config.seed = 7
    config.sampling.update(alpha="auto", pds_mode="paper", microbatch=2)
    config.eval.compare = ""
    run_lib.MODES["sample"](Request(config, workdir, seeds="2,5", overrides={"sampling.speed_up": 100.0}))
    return workdir / "eval"


def test_the_image_is_the_same_and_so_is_what_is_written_into_it(original, tmp_path):
    run_lib.MODES["sample"](Request(None, tmp_path, from_image=str(original / "image_5.png")))
    assert [path.name for path in (tmp_path / "eval").glob("image_*")] == ["image_5.png"]
    assert (tmp_path / "eval" / "image_5.png").read_bytes() == (original / "image_5.png").read_bytes()


def test_the_text_names_the_run(original):
    text = read_png(original / "image_2.png").text
    assert (text["seed"], text["index"], text["method"], text["calls"]) == ("7", "2", "pds", "40")
    assert len(text["weights"]) == 64
    assert json.loads(text["config"])["sampling"]["speed_up"] == 100.0


def test_flags_change_what_is_repeated(original, tmp_path):
    overrides = {"sampling.speed_up": 200.0}
    run_lib.MODES["sample"](Request(None, tmp_path, from_image=str(original / "image_5.png"), overrides=overrides))
    assert read_png(tmp_path / "eval" / "image_5.png").text["calls"] == "20"


def test_other_weights_are_warned_of(original, caplog):
    config = analytic.get_config()
    config.data.image_size, config.seed = 8, 7
    with caplog.at_level("WARNING"):
        repeat.check_weights(str(original / "image_2.png"), run_lib.load(config))
        assert not caplog.records
        config.seed = 3
        repeat.check_weights(str(original / "image_2.png"), run_lib.load(config))
    assert "was drawn with the weights" in caplog.text


@pytest.mark.parametrize("config", [demo.get_config(), analytic.get_config(), c64.get_config()])
def test_every_key_that_differs_comes_back(config):
    config.sampling.alpha = "auto"
    read = base.get_config()
    read.update(json.loads(repeat.settings_text(config)))
    for section in repeat.SECTIONS:
        assert read[section] == config[section]


def test_an_image_without_settings_and_a_second_config_are_refused(original, tmp_path):
    write_png(tmp_path / "plain.png", np.zeros((4, 4, 3), np.uint8), {"author": "someone"})
    with pytest.raises(ValueError, match=r"plain.png holds no settings \(its text has \['author'\]\)"):
        repeat.repeated(Request(None, tmp_path, from_image=str(tmp_path / "plain.png")))
    with pytest.raises(ValueError, match="brings its own config and index"):
        repeat.repeated(Request(base.get_config(), tmp_path, from_image=str(original / "image_2.png")))
