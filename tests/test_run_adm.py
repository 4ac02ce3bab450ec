"""ADM from the command line's side: published files of tiny networks, guided by their classifier, and an upsampler."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

import models
import run_lib
from builders.classifier import ChainIndex, load_classifier
from builders.grids import create_grid
from builders.model import create_network
from checkpoints import native
from checkpoints.base import flatten
from configs import families, methods
from reports.images import read_png

WEIGHTS, CLASSIFIER = "adm_unet_cond.pt", "adm_classifier_a.pt"


def nhwc(array):
    return np.moveaxis(array, 1, -1)


def tiny_config(method=""):
    """The networks of tests/goldens/adm."""
    config = families.adm(8, ch_mult=(1, 1), num_classes=10)
    config.model.update(nf=32, num_res_blocks=1, attn_resolutions=(4,), num_head_channels=16)
    config.classifier.update(
        num_classes=10, nf=32, num_res_blocks=1, attn_resolutions=(8,), num_head_channels=16, ch_mult=(1, 1)
    )
    config.sampling.update(num_steps=2, microbatch=2)
    return methods.apply(config, method)


@functools.cache
def published():
    return run_lib.load(tiny_config(), golden_folder("adm") / WEIGHTS)


def test_a_published_file_under_its_config_gives_the_published_noise():
    model = published()
    with np.load(golden_folder("adm") / "adm_unet_cond_io.npz") as io:
        x, t = jnp.asarray(nhwc(io["x"]), jnp.float32), jnp.asarray(io["t"] / 999, jnp.float32)
        denoiser, expected = model.denoiser.given(classes=jnp.asarray(io["y"])), nhwc(io["out_f64"])[..., :3]
    score = jax.jit(lambda denoiser, x, t: denoiser.score(x, t))(denoiser, x, t)
    sigma = model.sde.sigma(t)[:, None, None, None]
    np.testing.assert_allclose(-score * sigma, expected, atol=1e-5)
    network = jax.jit(lambda x, labels, classes: model.network(x, labels, classes=classes))
    output = network(x, 999 * t, denoiser.conditions["classes"])
    assert output.shape == (3, 8, 8, 6), "the network itself also says its variance"
    np.testing.assert_allclose(output[..., :3], expected, atol=1e-5)


def test_a_published_classifier_is_told_the_level_of_the_chain():
    model = published()
    classifier, num_classes = load_classifier(golden_folder("adm") / CLASSIFIER, model)
    assert num_classes == 10 and classifier.label == ChainIndex(model.sde)
    with np.load(golden_folder("adm") / "adm_classifier_a_io.npz") as io:
        x, t = jnp.asarray(nhwc(io["x"]), jnp.float32), jnp.asarray(io["t"] / 999, jnp.float32)
        logits = jax.jit(lambda classifier, x, t: classifier.logits(x, t))(classifier, x, t)
        np.testing.assert_allclose(logits, io["logits_f64"], atol=2e-6)
    with pytest.raises(ValueError, match=r"adm_unet_cond.pt does not fit the network"):
        load_classifier(golden_folder("adm") / WEIGHTS, model)


def run(tmp_path, config, checkpoint, **overrides):
    """Images and the record of a run of the command line's sample mode."""
    request = run_lib.Request(config, tmp_path / "out", str(checkpoint), overrides=overrides)
    run_lib.MODES["sample"](request)
    folder = tmp_path / "out" / "eval"
    images = [read_png(path).image for path in sorted(folder.glob("image_*.png"))]
    with np.load(next(folder.glob("samples_*.npz"))) as samples:
        assert samples["arr_0"].shape == (len(images), 8, 8, 3) and samples["arr_0"].dtype == np.uint8
    return np.stack(images), json.loads((folder / "run.json").read_text())["sessions"][-1]


def test_the_upsampler_enlarges_the_users_images_in_turn(tmp_path):
    config = tiny_config()
    config.model.super_resolution = True
    config.guidance.factor = 2
    shapes = models.param_shapes(create_network(config), (8, 8, 3))
    draw = lambda leaf: 0.1 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes)
    native.write(tmp_path / "up.safetensors", params, json.loads(config.to_json_best_effort()))
    assert flatten(params)["input_blocks_0_0/kernel"].shape == (3, 3, 6, 32)
    small = np.zeros((2, 4, 4, 3), np.uint8)
    small[1] = 255
    np.savez(tmp_path / "small.npz", arr_0=small)
    settings = {"data.low_res": str(tmp_path / "small.npz"), "eval.num_samples": 3, "sampling.labels": "4"}
    images, _ = run(tmp_path, config, tmp_path / "up.safetensors", **settings)
    assert len(images) == 3
    model = run_lib.load(config, tmp_path / "up.safetensors")
    model.config.data.low_res = str(tmp_path / "small.npz")
    alone = run_lib.sample(model, {"labels": "4"}, [2]).images
    np.testing.assert_array_equal(run_lib.to_pixels(model, alone)[0], images[2])
    np.savez(tmp_path / "small.npz", arr_0=small[::-1])
    swapped = run_lib.sample(model, {"labels": "4"}, [2]).images
    assert np.abs(swapped - alone).max() > 1e-3, "the network sees the small image"
    model.config.data.low_res = ""
    with pytest.raises(FileNotFoundError, match="config.data.low_res='': there is no such file"):
        run_lib.sample(model, {}, [0])


def test_classes_reach_the_network_and_a_wrong_one_is_named():
    model = published()
    three, four = (run_lib.sample(model, {"labels": label}, [0]).images for label in ("3", "4"))
    assert np.abs(three - four).max() > 1e-3
    with pytest.raises(ValueError, match=r"--labels='3,10': '10' is no class; classes are 0 to 9"):
        run_lib.sample(model, {"labels": "3,10"}, [0])
    with pytest.raises(ValueError, match=r"--method='stps4' is unknown.*Did you mean 'stsp4'"):
        run_lib.sample(model, {"method": "stps4"}, [0])


def test_a_respaced_grid_steps_on_levels_of_the_chain():
    config = tiny_config()
    config.sampling.update(grid="4,6", num_steps=0)
    grid = create_grid(published(), config, published().denoiser)
    # Four levels of the first half of the chain, six of the second, each from end to end.
    levels = [*np.round(np.linspace(0, 499, 4)), *np.round(np.linspace(500, 999, 6))]
    np.testing.assert_allclose(grid.s[::-1], [0, *published().sde.noise_scale(np.array(levels) / 999)], rtol=1e-10)


def test_bfloat16_runs_the_torso_only():
    config = tiny_config()
    config.precision = "bfloat16"
    model = published()
    half = run_lib.load(config, golden_folder("adm") / WEIGHTS)
    full, rounded = (run_lib.sample(m, {"labels": "3"}, [0]).images for m in (model, half))
    # A random network draws pixels at the edge of the range, and rounding turns single ones over.
    assert rounded.dtype == np.float32 and 1e-4 < np.abs(full - rounded).mean() < 0.05


# --method of the published program -> network calls, gradient calls of 2 steps
PUBLISHED = {"ddim": (2, 2), "plms2": (2, 2), "ltsp2": (2, 2), "stsp2": (2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("method", PUBLISHED)
def test_every_published_command_has_its_equivalent(method, tmp_path):
    settings = {"guidance.classifier": str(golden_folder("adm") / CLASSIFIER), "sampling.labels": "3,7"}
    settings |= {"sampling.method": method, "sampling.num_steps": 2, "eval.num_samples": 3}
    config = tiny_config("class_conditional")
    config.guidance.scale = 20.0
    images, record = run(tmp_path, config, golden_folder("adm") / WEIGHTS, **settings)
    assert len(images) == 3 and not np.array_equal(images[0], images[1])
    assert (record["calls"], record["gradient_calls"]) == PUBLISHED[method]
