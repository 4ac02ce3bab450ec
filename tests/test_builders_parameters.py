"""config.shard_parameters: shares of parameters on every device, the same images, refusals."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
import sde_lib
from builders import parameters
from builders.draw import group_size
from builders.memory import automatic_microbatch
from configs import base
from models import sharding
from run_lib import Model

ROOT = Path(__file__).parent.parent
SHAPE = (8, 8, 3)


def denoise(params, x, s):
    hidden = jnp.tanh(jnp.einsum("bhwc,cd->bhwd", x, params["first"]) + params["shift"][None, None, None])
    return jnp.einsum("bhwd,dc->bhwc", hidden, params["last"]) / (1 + s[:, None, None, None] ** 2)


def model_of(cut: bool, **sampling) -> Model:
    rng = np.random.default_rng(0)
    shapes = {"first": (3, 16), "last": (16, 3), "shift": (16,), "odd": (3,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = Model.from_function(denoise, weights, sde_lib.VESDE(), "x0", "sigma", (0, 1), SHAPE)
    model.config.sampling.update({"method": "unipc", "num_steps": 4, "microbatch": 2} | sampling)
    model.config.shard_parameters = cut
    if not cut:
        return model
    return dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, params=parameters.place(weights)))


@pytest.mark.parametrize(
    ("shape", "count", "axis"),
    [((3, 3, 16, 32), 8, 3), ((3, 3, 32, 16), 8, 2), ((3, 3, 16, 16), 2, 3), ((3, 3, 3, 32), 8, 3), ((3,), 2, None)],
)
def test_a_parameter_is_cut_along_the_largest_axis_that_divides(shape, count, axis):
    assert sharding.split_axis(shape, count) == axis


def test_a_scalar_and_an_empty_parameter_are_not_cut():
    assert sharding.split_axis((), 2) is None and sharding.split_axis((0, 3), 2) is None


def test_every_device_has_a_share_of_every_parameter_that_divides():
    laid = model_of(cut=True).denoiser.params
    assert {name: leaf.addressable_shards[1].data.shape for name, leaf in laid.items()} == {
        "first": (3, 8),
        "last": (8, 3),
        "shift": (8,),
        "odd": (3,),
    }


@pytest.mark.parametrize("sampling", [{"method": "unipc"}, {"method": "pc", "num_steps": 3}], ids=lambda s: s["method"])
def test_images_are_those_of_whole_parameters(sampling):
    whole, cut = (run_lib.sample(model_of(cut, **sampling), seeds=range(5)) for cut in (False, True))
    np.testing.assert_allclose(cut.images, whole.images, rtol=0, atol=1e-6 * np.abs(whole.images).max())
    assert cut.images.shape == (5, *SHAPE)  # of which three are a padded group


def test_all_devices_take_part_even_in_one_image():
    assert group_size(model_of(cut=False).config, 1)[1] == 2
    assert group_size(model_of(cut=True).config, 1)[1] == 4


@pytest.mark.parametrize(
    ("sampling", "batch_size", "message"),
    [
        ({"method": "ode"}, 64, "--method=ode makes as many calls as the images of a device need"),
        ({"step_norm": "batch"}, 64, "step_norm=batch draws on one device"),
        ({}, 3, "2 devices share the parameters and draw 2 images each.*set --batch_size=4 or"),
    ],
)
def test_a_run_that_cannot_share_them_is_refused(sampling, batch_size, message):
    model = model_of(cut=True, **sampling)
    model.config.eval.batch_size = batch_size
    with pytest.raises(ValueError, match=message):
        run_lib.sample(model, seeds=range(2))


def test_choosing_the_microbatch_is_refused():
    with pytest.raises(ValueError, match="say how many images a device takes"):
        automatic_microbatch(model_of(cut=True), model_of(cut=True).config, 4)


def test_a_method_with_parameters_elsewhere_is_refused():
    model = model_of(cut=True)
    sampler = run_lib.create_sampler(model, model.config)
    other = sampler._replace(begin=lambda keys: (model.denoiser.params, sampler.begin(keys)[1]))
    with pytest.raises(ValueError, match="does not put its network's parameters together"):
        parameters.gathering(other).begin(jax.random.split(jax.random.key(0), 2))


def test_one_device_and_other_modes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    with pytest.raises(ValueError, match="this one has one; unset it"):
        parameters.place({"w": np.zeros(4)})
    config = base.get_config()
    config.shard_parameters = True
    with pytest.raises(SystemExit, match="--mode=export keeps parameters whole on a device"):
        run_lib.run("export", run_lib.Request(config, None))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_command_draws_the_same_images_on_one_two_and_eight_devices(tmp_path):
    def draw(devices: int, *more: str) -> dict[str, np.ndarray]:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
        environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        line = [sys.executable, "main.py", "--config=configs/ve/demo.py:unipc", "--steps=3", "--num_samples=3"]
        line += ["--config.sampling.microbatch=1", f"--workdir={tmp_path / str(devices)}", *more]
        subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True)
        with np.load(tmp_path / str(devices) / "eval" / "samples_0.npz") as file:
            return {key: file[key] for key in file.files}

    whole = draw(1)
    for devices in (2, 8):
        cut = draw(devices, "--config.shard_parameters")
        # Rounded to bytes, values that differ by 1e-6 agree but for those at an edge.
        assert np.mean(cut["arr_0"] != whole["arr_0"]) < 1e-3
        assert np.abs(cut["arr_0"].astype(int) - whole["arr_0"]).max() <= 1
