"""Four mistakes planted on the demo checkpoint, and what the sanity gate says of each."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import run_lib
from builders import sanity
from builders.config import shipped
from builders.model import Model, create_denoiser
from checkpoints import safetensors_file
from configs.ve import demo
from modes import inspect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return run_lib.load(demo.get_config())


def declared_as(model, **changes):
    """The same weights under a config with other entries."""
    config = demo.get_config()
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return dataclasses.replace(model, config=config, denoiser=create_denoiser(config, model.denoiser.params))


def test_the_demo_denoises_as_its_config_says(model):
    verdict = sanity.check(model)
    assert verdict.right and verdict.declared.ratio < 0.7
    assert sanity.warning(model) == ""


@pytest.mark.parametrize(
    ("mistake", "remedy"),
    [
        ({"model__scaling": "none", "model__predicts": "eps"}, {"scaling": "--config.model.scaling=edm"}),
        ({"model__scaling_label": "c_noise"}, {"scaling_label": "--config.model.scaling_label=sigma"}),
    ],
    ids=["prediction", "log sigma for sigma"],
)
def test_a_planted_mistake_is_named_with_its_remedy(model, mistake, remedy):
    wrong = declared_as(model, **mistake)
    verdict = sanity.check(wrong)
    assert not verdict.right
    assert remedy.items() <= verdict.changes.items(), verdict.report()


def test_a_wrong_data_range_is_named_with_the_right_one(model):
    """As a function of its own; in the config it is no mistake, for EDM's scaling settles the range."""

    def denoised(params, x, sigma):
        return dataclasses.replace(model.denoiser, params=params).denoise(x, sigma)

    arguments = {"predicts": "denoised", "told": "sigma", "shape": model.shape}
    assert sanity.check(
        Model.from_function(denoised, model.denoiser.params, model.sde, data_range=(0.0, 1.0), **arguments)
    ).right
    wrong = Model.from_function(denoised, model.denoiser.params, model.sde, data_range=(-1.0, 1.0), **arguments)
    assert sanity.check(wrong).changes == {"data_range": "data_range=(0.0, 1.0)"}


def test_raw_weights_in_place_of_averaged_ones_are_told(model):
    """Raw weights scatter about their average; here by a tenth of each tensor's spread."""
    generator = np.random.default_rng(0)

    def scattered(leaf):
        leaf = np.asarray(leaf)
        return leaf + 0.1 * leaf.std() * generator.standard_normal(leaf.shape).astype(leaf.dtype)

    raw = jax.tree.map(scattered, model.denoiser.params)
    config = demo.get_config()
    config.model.ema = False
    wrong = dataclasses.replace(model, config=config, denoiser=create_denoiser(config, raw))
    verdict = sanity.check(wrong, other_weights=model.denoiser.params)
    assert verdict.changes == {"ema": "--config.model.ema=True"}, verdict.report()
    assert sanity.check(model, other_weights=raw).changes == {}


def test_of_several_configs_that_fit_a_file_the_right_one_comes_first(monkeypatch, tmp_path, capsys):
    wrong = demo.get_config()
    wrong.model.update(scaling="none", predicts="eps")
    monkeypatch.setattr(inspect, "fitting_configs", lambda stored, fits: ["configs/wrong.py", "configs/ve/demo.py"])
    configs = {"configs/wrong.py": wrong, "configs/ve/demo.py": demo.get_config()}
    monkeypatch.setattr(inspect, "load_config_file", configs.__getitem__)
    tensors, _ = safetensors_file.load(Path(shipped(demo.get_config().checkpoint)))
    save_file(tensors, tmp_path / "bare.safetensors")
    inspect.run(run_lib.Request(None, None, str(tmp_path / "bare.safetensors")))
    first, second, _, command = capsys.readouterr().out.strip().split("\n")[-4:]
    assert first.endswith("configs/ve/demo.py") and float(first.split()[0]) < 0.7
    assert second.endswith("configs/wrong.py") and float(second.split()[0]) > 1.5
    assert command.startswith("python main.py --config configs/ve/demo.py --checkpoint ")
