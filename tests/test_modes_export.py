"""--mode=export: another program, without this toolkit, draws the same images; what cannot leave is refused."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import run_lib
import sde_lib
from builders.exported import create_program
from modes import export
from modes.request import Request
from run_lib import Model

SHAPE = (4, 4, 3)

READER = """
import sys, jax, numpy as np
from pathlib import Path
sampler = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
np.save(sys.argv[2], sampler.call(np.uint32(7), np.array([5, 0, 3], np.uint32)))
assert not {"run_lib", "sampling", "flax"} & set(sys.modules)
"""


def denoise(params, x, s):
    mean = params["mean"][None]
    return mean + (x - mean) / (1 + s[:, None, None, None] ** 2)


def model_of(**sampling):
    weights = {"mean": np.linspace(0, 1, 48, dtype=np.float32).reshape(SHAPE)}
    model = Model.from_function(denoise, weights, sde_lib.VESDE(), "x0", "sigma", (0, 1), SHAPE)
    model.config.seed = 7
    model.config.sampling.update(sampling)
    return model


def program_of(model):
    return create_program(model, run_lib.create_sampler(model, model.config), model.config)


@pytest.mark.parametrize(
    "sampling",
    [{"method": "unipc", "num_steps": 4}, {"method": "pds", "speed_up": 250.0}, {"method": "edm", "num_steps": 4}],
)
def test_the_program_draws_the_images_of_the_sampler_for_any_batch(sampling):
    model = model_of(**sampling)
    exported = program_of(model)
    for indices in ([5, 0, 3], [9]):
        drawn = np.clip(run_lib.sample(model, {}, indices).images, 0, 1)
        found = exported.call(np.uint32(7), np.array(indices, np.uint32))
        # From noise of scale 50 float32 keeps about this much, and the two programs are compiled apart.
        np.testing.assert_allclose(found, drawn, atol=1e-4)


def test_the_file_is_read_without_the_toolkit(tmp_path):
    pytest.importorskip("flatbuffers")
    model = model_of(method="ddim", num_steps=3)
    path = tmp_path / "program.jax"
    path.write_bytes(program_of(model).serialize())
    subprocess.run([sys.executable, "-c", READER, path, tmp_path / "images.npy"], check=True, cwd=tmp_path)
    drawn = np.clip(run_lib.sample(model, {}, [5, 0, 3]).images, 0, 1)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), drawn, atol=2e-6)


def test_conditions_and_batch_norms_stay_at_home():
    model = model_of(method="pds", speed_up=250.0, step_norm="batch")
    with pytest.raises(ValueError, match="step_norm=batch ties the images of a batch"):
        program_of(model)
    sampler = run_lib.create_sampler(model_of(), model_of().config)._replace(of=lambda indices: sampler)
    with pytest.raises(ValueError, match="given a condition with each image"):
        create_program(model, sampler, model.config)


def test_the_mode_leaves_program_and_description(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    config = run_lib.load_config_file("configs/ve/analytic.py")
    config.data.image_size = 8
    config.sampling.update(method="heun", num_steps=3)
    export.run(Request(config, tmp_path, dry_run=True))
    assert not (tmp_path / "export").exists()
    export.run(Request(config, tmp_path))
    about = json.loads((tmp_path / "export" / "sampler.json").read_text())
    assert about["calls"] == 5 and about["platforms"] == ["cpu", "cuda", "tpu"] and "8, 8, 3" in about["returns"]
    found = jax.export.deserialize(bytearray((tmp_path / "export" / "sampler.jax").read_bytes()))
    assert found.call(np.uint32(0), np.arange(2, dtype=np.uint32)).shape == (2, 8, 8, 3)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="--mode=export needs flatbuffers"):
        export.run(Request(config, tmp_path))
