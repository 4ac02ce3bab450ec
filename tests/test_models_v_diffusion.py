"""The U-Net of progressive distillation and, with temporal layers, of DSNO: recorded outputs, its states, its heads."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from golden_files import GOLDENS

import checkpoints
import models
import run_lib
import sde_lib
from builders.grids import create_grid
from builders.model import create_network
from checkpoints.base import flatten, unflatten
from configs.vp.v_diffusion import cifar10, imagenet64
from models import v_diffusion

RECORDED = np.load(GOLDENS / "dsno" / "dsno.npz")
MANIFEST = json.loads((GOLDENS / "dsno" / "dsno_unet_manifest.json").read_text())
SIZE = dict(nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,), emb_ch=64)


@functools.cache
def weights():
    """Parameter path -> tensor, by the recipe of tests/goldens/dsno; temporal layers included."""
    rng, flat = np.random.RandomState(MANIFEST["config"]["seed"]), {}
    for entry in MANIFEST["params"]:
        name, shape, kind = entry["name"], entry["shape"], entry["kind"]
        z = rng.standard_normal(shape)
        if kind == "fan":
            z /= np.sqrt(shape[0] if name.split("/")[-2] in ("q", "k", "v") else np.prod(shape[:-1]))
        elif kind == "scale":
            z = 1 + 0.1 * z
        else:
            z *= {"fan2": 1 / np.sqrt(np.prod(shape[:2])), "bias": 0.1, "tconv": 1 / shape[0]}[kind]
        flat[name] = z.astype(np.float32)
        assert abs(flat[name].sum(dtype=np.float64) - entry["sum"]) < 1e-3
    return flat


def teacher():
    return {name: value for name, value in weights().items() if "time_conv" not in name}


def small_config():
    config = cifar10.get_config()
    config.model.update(**SIZE)
    config.data.image_size = 8
    return config


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_the_teacher_equals_the_recorded_network_from_its_training_state(tmp_path):
    state = {"step": np.full(8, 7), "ema_params": unflatten(teacher()), "num_sample_steps": np.full(8, 16)}
    (tmp_path / "imagenet_16").write_bytes(serialization.msgpack_serialize(state))
    stored = checkpoints.read(tmp_path / "imagenet_16")
    assert (stored.format, stored.step, stored.extra) == ("distillation_flax", 7, {"num_sample_steps": 16})
    model = run_lib.load(small_config(), tmp_path / "imagenet_16")
    # Told the noise scale of log-SNR lambda, exp(-lambda/2).
    logsnr, x = RECORDED["teacher/logsnr"], jnp.asarray(RECORDED["teacher/x_nhwc"])
    denoiser = dataclasses.replace(model.denoiser, network=jax.jit(model.denoiser.network))
    output = denoiser.network(denoiser.params, x, jnp.exp(-logsnr / 2))
    assert relative(output, RECORDED["teacher/out_nhwc"]) < 1e-5
    # It sees x = alpha y, is told s and puts out x0. At log-SNR -20 a float32 time is 5e-4 away.
    alpha = 1 / jnp.sqrt(1 + jnp.exp(-jnp.asarray(logsnr)))[:, None, None, None]
    assert relative(denoiser.denoise(x / alpha, jnp.exp(-jnp.asarray(logsnr) / 2)), output) < 2e-3


def test_with_temporal_layers_it_is_the_recorded_operator():
    network = models.create_network("v_diffusion", SIZE, mixing="fourier", num_times=4)
    x = jnp.repeat(jnp.asarray(RECORDED["dsno/x_nchw"]).transpose(0, 2, 3, 1), 4, axis=0)
    s = jnp.tile(jnp.exp(-RECORDED["dsno/logsnr"] / 2), 2)
    out = jax.jit(network.apply)({"params": unflatten(weights())}, x, s)
    ours = out.reshape(2, 4, 8, 8, 3).transpose(0, 1, 4, 2, 3)
    assert relative(ours, RECORDED["dsno/out_btchw"]) < 1e-5


def test_raw_and_averaged_weights_of_a_state_are_told_apart(tmp_path):
    def state(**more):
        path = tmp_path / "state"
        averaged = {"conv": {"bias": np.ones(2)}}
        path.write_bytes(serialization.msgpack_serialize({"ema_params": averaged, **more}))
        return checkpoints.read(path)

    raw = {"conv": {"bias": np.zeros(2)}}
    for stored in (state(params=raw), state(optimizer={"target": raw})):
        assert stored.raw["conv/bias"][0] == 0 and stored.weights()["conv/bias"][0] == 1
    only = state()
    assert only.ema is None and only.raw["conv/bias"][0] == 1 and "one set" in only.notes[0]


def test_two_heads_give_the_estimate_weighted_by_noise_and_signal():
    x0, eps, x = np.random.default_rng(0).standard_normal((3, 2, 4, 4, 3))
    sde, t = sde_lib.CosineVPSDE(), np.array([0.2, 0.7])
    alpha, sigma = (value(t)[:, None, None, None] for value in (sde.alpha, sde.sigma))
    merged = v_diffusion.merge_heads(
        jnp.concatenate([x0, eps], axis=-1), jnp.asarray(x), jnp.asarray(sde.noise_scale(t))
    )
    np.testing.assert_allclose(merged, sigma**2 * x0 + alpha**2 * (x - sigma * eps) / alpha, rtol=1e-10)
    network = models.create_network("v_diffusion", SIZE, head="both")
    shapes = models.param_shapes(network, (8, 8, 3))
    assert shapes["conv_out"]["kernel"].shape == (3, 3, 32, 6)
    out = jax.eval_shape(network.apply, {"params": shapes}, jnp.zeros((1, 8, 8, 3)), jnp.ones(1))
    assert out.shape == (1, 8, 8, 3)


def test_the_angle_is_the_recorded_one_and_the_other_inputs_are_functions_of_log_snr():
    s = jnp.exp(-jnp.asarray(RECORDED["dsno/logsnr"]) / 2)
    np.testing.assert_allclose(v_diffusion.noise_input("inv_cos", s), RECORDED["dsno/inv_cos_input"], rtol=1e-5)
    s = jnp.exp(-jnp.asarray([-10.0, 2.0]) / 2)
    np.testing.assert_allclose(v_diffusion.noise_input("linear", s), [0.0, 0.6], atol=1e-12)
    np.testing.assert_allclose(v_diffusion.noise_input("sigmoid", s), [4.539786870e-05, 0.8807970780], rtol=1e-8)


@pytest.mark.parametrize(("config", "millions"), [(cifar10, 60.00), (imagenet64, 295.90)])
def test_published_configs_build_networks_of_the_published_size(config, millions):
    full = config.get_config()
    full.model.head = "single"  # the published count is that of three channels
    shapes = models.param_shapes(create_network(full), (full.data.image_size, full.data.image_size, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.005)


def state_of_a_student(path, steps):
    path.write_bytes(serialization.msgpack_serialize({"ema_params": unflatten(teacher()), "num_sample_steps": steps}))
    return path


def test_a_student_is_sampled_at_the_times_it_was_made_for(tmp_path):
    config = small_config()
    config.sampling.num_steps = 0
    model = run_lib.load(config, state_of_a_student(tmp_path / "student", 8))
    grid = create_grid(model, model.config, None)
    times = np.arange(8, 0, -1) / 8
    np.testing.assert_allclose(grid.s, [*sde_lib.CosineVPSDE().noise_scale(times), 0], rtol=1e-12)


def test_a_student_refuses_other_numbers_of_steps_and_its_first_teacher_does_not(tmp_path):
    config = small_config()
    config.sampling.num_steps = 5
    with pytest.raises(ValueError, match="student that was distilled for 8 steps.*--steps asks for 5"):
        run_lib.load(config, state_of_a_student(tmp_path / "student", 8))
    model = run_lib.load(config, state_of_a_student(tmp_path / "teacher", 1024))
    assert create_grid(model, model.config, None).num_steps == 5


def test_a_class_conditional_network_asks_for_classes():
    network = models.create_network("v_diffusion", SIZE, num_classes=3)
    x, s = jnp.zeros((1, 8, 8, 3)), jnp.ones(1)
    shapes = flatten(jax.eval_shape(network.init, jax.random.key(0), x, s)["params"])
    assert shapes["class_emb/kernel"].shape == (3, 64)
    with pytest.raises(ValueError, match="conditional on 3 classes and was given none.*--labels"):
        jax.eval_shape(network.apply, {"params": unflatten(shapes)}, x, s)


@pytest.mark.parametrize(("key", "value"), [("head", "v"), ("logsnr_input", "log")])
def test_an_unknown_switch_is_refused_by_key(key, value):
    with pytest.raises(ValueError, match=f"config.model.{key}='{value}' is unknown"):
        models.create_network("v_diffusion", {key: value})
