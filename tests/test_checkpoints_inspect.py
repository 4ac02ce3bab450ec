import hashlib
import json

import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
from checkpoints import native
from checkpoints.inspect import describe, summary

PDS = golden_folder("pds")
CHECKPOINTS = sorted([*PDS.glob("*.pth"), *PDS.glob("*.msgpack")])


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_the_parameter_count_is_the_recorded_one(path):
    recorded = json.loads(path.with_suffix(".json").read_text())["checkpoint"]
    facts = summary(checkpoints.read(path))
    assert facts["parameters"] == recorded["n_parameters"] and facts["step"] == recorded["step"]
    assert facts["ema"] and 0.01 < facts["ema_distance"] < 1 and facts["not_finite"] == []


def test_the_distance_of_the_ema_is_measured(tmp_path):
    checkpoint = checkpoints.read(PDS / "flax_ve_ncsnv2_64_tiny.msgpack")
    moved = checkpoint._replace(ema={name: 1.25 * array for name, array in checkpoint.raw.items()})
    assert summary(moved)["ema_distance"] == pytest.approx(0.25)


def test_the_text_names_what_a_reader_looks_for():
    path = PDS / "ve_bedroom_tiny.pth"
    text = describe(checkpoints.read(path))
    for part in (
        "score_sde_torch",
        "79,985 in 302 tensors",
        "float32, float64",
        "step        1234",
        "Fourier frequencies",
    ):
        assert part in text
    assert "EMA         yes," in text and hashlib.sha256(path.read_bytes()).hexdigest() in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("all_modules/")}
    assert (
        rows["all_modules/13"][1:3] == ["10", "1,120"] and len(rows) == 37
    )  # attention: norm 2 x 16, NIN 4 x (256 + 16)


def test_a_single_set_its_config_and_bad_values_are_shown(tmp_path):
    params = {"Conv_0": {"bias": np.array([1, np.nan], np.float32), "kernel": np.ones((1, 1, 2, 2), np.float32)}}
    native.write(tmp_path / "w", params, {"model": {"name": "ncsnpp"}}, {"source": "here"})
    text = describe(checkpoints.read(tmp_path / "w"))
    assert "EMA         no: one set of weights" in text and "step        not stored" in text
    assert 'config      {"model": {"name": "ncsnpp"}}' in text and '"source": "here"' in text
    assert "WARNING     NaN or infinite values in Conv_0/bias" in text
