"""Bits a dimension: closed forms of Gaussian models, the trace's estimate, and what --mode=likelihood writes."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
import sde_lib
from builders import likelihood as builder
from configs.ve import analytic as analytic_config
from modes import likelihood as mode
from modes.request import Request
from reports.images import write_png
from run_lib import Model
from sampling import likelihood
from sampling.adaptive import Adaptive

MEAN, STD = 0.45, 0.2
SHAPE = (4, 4, 3)


def network(params, x, labels):
    """The exact denoiser of data N(MEAN, STD^2 I) in the view y = x/alpha; x arrives as alpha y."""
    s = labels[:, None, None, None]
    return MEAN + (x * jnp.sqrt(1 + s**2 * params) - MEAN) * STD**2 / (STD**2 + s**2)


def gaussian_model(sde, ends):
    preserving = float(isinstance(sde, sde_lib.VPSDE))  # then 1/alpha = sqrt(1 + s^2)
    made = Model.from_function(network, jnp.float32(preserving), sde, "x0", "sigma", ends, SHAPE)
    made.config.sampling.microbatch = 2
    return made


def likely_pixels(low, high):
    """uint8 images that the model thinks likely."""
    x = np.random.default_rng(0).normal(MEAN, STD, (3, *SHAPE))
    return np.clip((x - low) / (high - low) * 256, 0, 255).astype(np.uint8)


def dequantised(model, pixels):
    """The states x that `builder.evaluate` scores, float64."""
    keys = [jax.random.fold_in(jax.random.key(model.config.seed), i) for i in range(len(pixels))]
    noise = [jax.random.uniform(jax.random.fold_in(key, 0), pixels.shape[1:], jnp.float32) for key in keys]
    low, high = model.data_range
    return low + (high - low) * (pixels + np.array(noise, np.float64)) / 256


def normal_bits(x, mean, variance, level):
    """Bits a dimension of levels of that width under N(mean, variance)."""
    nats = 0.5 * np.mean((x - mean) ** 2 / variance + np.log(2 * np.pi * variance), axis=(1, 2, 3))
    return (nats - np.log(level)) / np.log(2)


@pytest.mark.parametrize("sde, ends", [(sde_lib.VESDE(), (0, 1)), (sde_lib.VPSDE(), (-1, 1))])
def test_a_gaussian_model_has_the_likelihood_of_its_closed_form(sde, ends):
    model, pixels, level = gaussian_model(sde, ends), likely_pixels(*ends), (ends[1] - ends[0]) / 256
    found = builder.evaluate(model, pixels)
    x = dequantised(model, pixels)
    (alpha, sigma), (end_alpha, end_sigma) = (
        (float(sde.alpha(np.float64(t))), float(sde.sigma(np.float64(t)))) for t in (1e-5, 1.0)
    )
    variance, end_variance = (alpha * STD) ** 2 + sigma**2, (end_alpha * STD) ** 2 + end_sigma**2
    np.testing.assert_allclose(found.bits_per_dim, normal_bits(x, alpha * MEAN, variance, level), atol=5e-3)
    # The prior is not quite what the model makes of its data in the end: with that too the number is exact.
    end = end_alpha * MEAN + (x - alpha * MEAN) * np.sqrt(end_variance / variance)
    change = 0.5 * np.log2(end_variance / variance)
    exact = normal_bits(end, 0.0, sde.prior_sigma**2, level) - change
    np.testing.assert_allclose(found.bits_per_dim, exact, atol=1e-4)
    assert found.calls.shape == (3,) and (found.calls % 6 == 1).all() and (found.calls < 400).all()


def test_the_mean_over_all_signs_is_the_exact_trace():
    matrix = np.array([[0.3, 0.9, 0.1], [-0.4, 0.2, 0.5], [0.7, 0.0, -0.1]])
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=3)))[:, None, None]
    y = jnp.tile(jnp.array([0.3, -0.2, 0.5]), (8, 1))[:, None, None]
    found = likelihood.log_density(Adaptive(rtol=1e-9, atol=1e-9), lambda y, s: y @ matrix.T, y, signs, 0.5, 2.0, 1.0)
    # dy/dlam = (A - 1) y over lam = -log 4: a matrix exponential, and the divergence tr A - 3 throughout.
    end = jax.scipy.linalg.expm(jnp.array(matrix - np.eye(3)) * -np.log(4)) @ y[0, 0, 0]
    prior = -0.5 * float(end @ end) - 1.5 * np.log(2 * np.pi)
    expected = prior - np.log(4) * (np.trace(matrix) - 3)
    assert np.std(found.log_density) > 0.1
    np.testing.assert_allclose(np.mean(found.log_density), expected, atol=1e-7)


def test_dequantised_images_fill_each_level_and_no_more():
    keys = jax.random.split(jax.random.key(0), 40)
    pixels = jnp.full((40, *SHAPE), 255, jnp.uint8)
    x = np.asarray(likelihood.dequantise(pixels, keys, -1.0, 1.0))
    assert 1 - 2 / 256 <= x.min() < 1 - 1.98 / 256 and 1 - 0.02 / 256 < x.max() < 1
    assert abs(np.asarray(likelihood.random_signs(keys, SHAPE)).mean()) < 0.1


def test_an_image_has_the_same_number_however_many_are_scored():
    model = gaussian_model(sde_lib.VESDE(), (0, 1))
    pixels = likely_pixels(0, 1)
    together, alone = builder.evaluate(model, pixels), builder.evaluate(model, pixels[:1])
    np.testing.assert_array_equal(alone.bits_per_dim[0], together.bits_per_dim[0])


@pytest.mark.parametrize(
    "section, values, message",
    [
        ("guidance", {"kind": "classifier"}, "no model's density"),
        ("student", {"method": "consistency"}, "name the weights of its teacher"),
        ("model", {"super_resolution": True}, "no likelihood of images alone"),
    ],
)
def test_what_has_no_density_is_refused(section, values, message):
    model = gaussian_model(sde_lib.VESDE(), (0, 1))
    model.config[section].update(values)
    with pytest.raises(ValueError, match=message):
        builder.evaluate(model, likely_pixels(0, 1))


def test_separate_noise_levels_and_other_shapes_are_refused():
    model = gaussian_model(sde_lib.VESDE(), (0, 1))
    with pytest.raises(ValueError, match="trained on separate noise levels"):
        told_levels = dataclasses.replace(model.denoiser, told="level")
        builder.evaluate(dataclasses.replace(model, denoiser=told_levels), likely_pixels(0, 1))
    with pytest.raises(ValueError, match="these \\(3, 2, 4, 3\\) of uint8"):
        builder.evaluate(model, likely_pixels(0, 1)[:, :2])


def config(source="", **changes):
    """A Gaussian model with the spectrum of photographs."""
    made = analytic_config.get_config()
    made.sde.sigma_max = 50.0
    made.model.update(components=1, residual=1.0)
    made.data.update(image_size=8, source=source, **changes)
    made.sampling.microbatch = 8
    made.eval.num_samples = 8
    return made


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photographs"
    folder.mkdir()
    images = np.random.default_rng(1).integers(90, 160, (16, 8, 8, 3)).astype(np.uint8)
    for index, image in enumerate(images):
        write_png(folder / f"{index:02}.png", image)
    return str(folder), images


def test_the_mode_writes_the_likelihood_of_a_coloured_gaussian(tmp_path, photographs, capsys):
    source, images = photographs
    run_lib.MODES["likelihood"](Request(config(source, holdout=2), tmp_path))
    row = json.loads((tmp_path / "likelihood.jsonl").read_text())
    assert (row["n"], row["held_out"], row["images"], row["rtol"]) == (8, True, "photographs", 1e-5)
    model = run_lib.load(config(source))
    half = np.asarray(model.denoiser.params.variance, np.float64)
    spectrum = np.concatenate([half, np.roll(np.flip(half[:, 1:4], (0, 1)), 1, 0)], axis=1)
    variance = spectrum + 0.01**2
    x = dequantised(model, images[::2])
    sign_keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(42), i), 1) for i in range(8)]
    signs = [jax.random.rademacher(key, (8, 8, 3), jnp.float32) for key in sign_keys]
    # Along each frequency the flow stretches by `growth`; the estimated trace weighs them by the signs' power.
    growth = np.sqrt((spectrum + 50.0**2) / variance)
    end, power = (np.abs(np.fft.fft2(values, axes=(1, 2), norm="ortho")) for values in (x - 0.5, np.array(signs)))
    exact = normal_bits(end * growth[None], 0.0, 50.0**2, 1 / 256) - np.mean(
        power**2 * np.log2(growth)[None], (1, 2, 3)
    )
    assert row["bits_per_dim"] == pytest.approx(exact.mean(), abs=2e-3)
    assert row["standard_error"] == pytest.approx(exact.std(ddof=1) / np.sqrt(8), rel=0.02)
    assert row["calls"] <= row["most_calls"] < 1000
    assert "bits_per_dim" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_missing_images_are_named(tmp_path, photographs):
    run_lib.MODES["likelihood"](Request(config(photographs[0]), tmp_path / "w", dry_run=True))
    assert not (tmp_path / "w").exists()
    with pytest.raises(ValueError, match="config.data.source"):
        run_lib.MODES["likelihood"](Request(config(), tmp_path))
    with pytest.raises(ValueError, match="--num_samples=0 must be at least 1"):
        empty = config(photographs[0])
        empty.eval.num_samples = 0
        run_lib.MODES["likelihood"](Request(empty, tmp_path))


def test_the_class_of_an_image_is_its_own_unless_labels_name_it(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", pixels, np.array([2, 0, 1, 2]))
    asked = config(str(tmp_path / "data.npz"), num_classes=3)
    asked.eval.num_samples = 3
    np.testing.assert_array_equal(mode.images(asked)[1], [2, 0, 1])
    np.testing.assert_array_equal(mode.images(asked)[0], pixels[:3])
    asked.sampling.labels = "1"
    np.testing.assert_array_equal(mode.images(asked)[1], [1, 1, 1])
    asked.update(data={"num_classes": 2}, sampling={"labels": ""})
    with pytest.raises(ValueError, match="has classes 0 to 2 and the network 2"):
        mode.images(asked)


def test_a_network_that_is_told_classes_is_told_each_images():
    def told(params, x, labels, classes):
        return network(params, x - 0.1 * classes[:, None, None, None], labels) + 0.1 * classes[:, None, None, None]

    model = gaussian_model(sde_lib.VESDE(), (0, 1))
    model = dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=told))
    model.config.data.num_classes = 3
    classes = np.array([2, 0, 1])
    pixels = np.clip(likely_pixels(0, 1) + 25.0 * classes[:, None, None, None], 0, 255).astype(np.uint8)
    expected = normal_bits(
        dequantised(model, pixels), MEAN + 0.1 * classes[:, None, None, None], STD**2 + 1e-4, 1 / 256
    )
    np.testing.assert_allclose(builder.evaluate(model, pixels, classes).bits_per_dim, expected, atol=6e-3)
    with pytest.raises(ValueError, match="one label an image"):
        builder.evaluate(model, pixels)
