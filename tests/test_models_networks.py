"""Networks against the published programs: single layers, whole networks, scores; averaged weights told from raw."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
import models
import run_lib
from builders.model import create_network
from checkpoints import fitting, names
from checkpoints.base import flatten
from configs import score_sde
from models import blocks, layers, resample

GOLDENS = golden_folder("pds")
TORCH = sorted(path.stem for path in GOLDENS.glob("*.pth"))
FLAX = sorted(path.stem for path in GOLDENS.glob("*.msgpack"))


def nhwc(array):
    return np.moveaxis(np.asarray(array), 1, -1) if np.ndim(array) == 4 else np.asarray(array)


@functools.lru_cache
def published(name):
    """(model under EMA weights, its recorded inputs and outputs, NHWC)."""
    suffix = "pth" if name in TORCH else "msgpack"
    config = score_sde.translate(json.loads((GOLDENS / f"{name}.json").read_text())["config"])
    model = run_lib.load(config, GOLDENS / f"{name}.{suffix}")
    denoiser = dataclasses.replace(model.denoiser, network=jax.jit(model.denoiser.network))
    model = dataclasses.replace(model, denoiser=denoiser)
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return model, arrays if name in FLAX else {key: nhwc(value) for key, value in arrays.items()}


def worst(ours, theirs):
    """Largest difference over largest value, image by image: scales differ a thousandfold between noise levels."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [*TORCH, *FLAX])
def test_network_and_score_equal_the_published_program(name):
    model, golden = published(name)
    tolerance = 1e-4 if model.config.model.embedding_type == "fourier" else 2e-5
    x, t, labels = (jnp.asarray(golden[key], jnp.float32) for key in ("x", "t", "labels"))
    output = model.denoiser.network(model.denoiser.params, x, labels)
    assert worst(output, golden["raw_ema"]) < tolerance
    assert worst(output, golden["raw_model"]) > 1e-2
    assert worst(model.score(x, t), golden["score_ema"]) < tolerance


@pytest.mark.parametrize("name", [*TORCH, *FLAX])
def test_the_network_is_told_what_the_published_program_tells_it(name):
    model, golden = published(name)
    np.testing.assert_allclose(model.denoiser.labels(jnp.asarray(golden["t"])), golden["labels"], rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("name", TORCH)
def test_network_equals_the_published_program_to_float64(name):
    model, golden = published(name)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.denoiser.params)
    x, labels = jnp.asarray(golden["x"], jnp.float64), jnp.asarray(golden["labels"], jnp.float64)
    output = model.denoiser.network(params, x, labels)
    assert worst(output, golden["raw_ema_f64"]) < 1e-10


@pytest.mark.parametrize("name", TORCH)
def test_raw_weights_are_loaded_on_request(name):
    model, golden = published(name)
    config = score_sde.translate(json.loads((GOLDENS / f"{name}.json").read_text())["config"])
    raw = run_lib.load(config, GOLDENS / f"{name}.pth", ema=False)
    x, labels = (jnp.asarray(golden[key], jnp.float32) for key in ("x", "labels"))
    assert worst(model.denoiser.network(raw.denoiser.params, x, labels), golden["raw_model"]) < 1e-4


@pytest.mark.parametrize("name", TORCH)
def test_module_names_go_to_pytorch_and_back(name):
    model, _ = published(name)
    order = models.structure(create_network(model.config), model.shape).order
    stored = checkpoints.read(GOLDENS / f"{name}.pth")
    flat = names.flax_names(stored.raw, order)
    back = names.torch_names(flat, order)
    originals = {key.removeprefix("module."): value for key, value in stored.raw.items() if "sigmas" not in key}
    assert back.keys() == originals.keys()
    for key, value in originals.items():
        np.testing.assert_array_equal(back[key], value)


PUBLISHED_SIZES = {  # parameters of the published checkpoints
    "ve/cifar10_ncsnpp_continuous": 62_758_915,
    "ve/cifar10_ncsnpp": 62_693_251,
    "ve/cifar10_ncsnpp_deep_continuous": 107_587_075,
    "ve/bedroom_ncsnpp_continuous": 65_574_549,
    "ve/ffhq_256_ncsnpp_continuous": 65_574_549,
    "ve/ffhq_ncsnpp_continuous": 105_785_896,
    "vp/cifar10_ddpmpp_continuous": 61_804_419,
    "vp/cifar10_ddpmpp_deep_continuous": 106_632_579,
    "vp/ddpm/cifar10": 35_218_947,
    "vp/ddpm/bedroom": 111_569_923,
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_published_configs_build_networks_of_the_published_size(name):
    config = run_lib.load_config_file(Path(__file__).parents[1] / "configs" / f"{name}.py")
    size = config.data.image_size
    shapes = models.param_shapes(create_network(config), (size, size, config.data.num_channels))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PUBLISHED_SIZES[name]


def layer_case(name):
    with np.load(GOLDENS / "layers_public.npz") as file:
        case = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    params = {key.removeprefix("param/"): value for key, value in case.items() if key.startswith("param/")}
    inputs = {key.removeprefix("in/"): nhwc(value) for key, value in case.items() if key.startswith("in/")}
    return inputs, params, json.loads(str(case["spec"])), nhwc(case["out"])


def flax_params(module, torch_params, *inputs):
    """Torch-named tensors as the parameter tree of `module`."""
    expected = flatten(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    flat = {}
    for name, tensor in torch_params.items():
        *parent, leaf = name.split(".")
        flat |= {"/".join([*parent, key]): value for key, value in [names._to_flax(leaf, tensor)]}
    if "weight" in expected:
        flat = {"weight": flat["kernel"], "bias": np.zeros(expected["bias"].shape)}
    return fitting.fit(flat, {key: leaf.shape for key, leaf in expected.items()}, "golden")


MODULES = {
    "attn_12": blocks.AttnBlockpp(),
    "biggan_down_fir": blocks.ResnetBlockBigGANpp(8, down=True, fir=True),
    "biggan_plain_8_12": blocks.ResnetBlockBigGANpp(12, fir=True),
    "biggan_wide_160_8": blocks.ResnetBlockBigGANpp(8, fir=True),
    "combine_sum": blocks.Combine("sum"),
    "down_nofir_conv": layers.Downsample(6, with_conv=True),
    "conv_down_1331": layers.Conv2d(5, (1, 3, 3, 1)),
    "groupnorm_12": layers.GroupNorm(3),
    "fourier_embedding_8": layers.GaussianFourierProjection(8),
}


@pytest.mark.parametrize("name", MODULES)
def test_layer_equals_the_published_program(name):
    inputs, torch_params, _, out = layer_case(name)
    arguments = [jnp.asarray(value) for value in inputs.values()]
    params = flax_params(MODULES[name], torch_params, *arguments)
    ours = MODULES[name].apply({"params": params}, *arguments)
    np.testing.assert_allclose(ours, out, atol=2e-5 * np.abs(out).max())


def test_positional_embedding_equals_the_published_program():
    inputs, _, _, out = layer_case("positional_embedding_16")
    np.testing.assert_allclose(layers.positional_embedding(jnp.asarray(inputs["t"]), 16), out, atol=2e-5)


RESAMPLING = {
    "fir_up_1331": lambda x: resample.fir_upsample(x, (1, 3, 3, 1)),
    "fir_down_1331": lambda x: resample.fir_downsample(x, (1, 3, 3, 1)),
    "naive_up": resample.naive_upsample,
    "naive_down": resample.naive_downsample,
}


@pytest.mark.parametrize("name", RESAMPLING)
def test_resampling_equals_the_published_program(name):
    inputs, _, _, out = layer_case(name)
    np.testing.assert_allclose(RESAMPLING[name](jnp.asarray(inputs["x"])), out, atol=2e-5 * np.abs(out).max())


def test_upsampling_by_a_filtered_convolution_is_the_adjoint_of_downsampling_by_one():
    # The published PyTorch form crashes, so no golden exists. The two are transposes of one another up to the filter's
    # gain: FIR up (gain 4) after a stride-2 transposed convolution, against FIR (gain 1) before a stride-2 convolution.
    rng = np.random.default_rng(0)
    kernel, x, y = (
        rng.standard_normal((3, 3, 2, 4)),
        rng.standard_normal((1, 8, 8, 2)),
        rng.standard_normal((1, 4, 4, 4)),
    )
    down = layers.Conv2d(4, (1, 3, 3, 1))
    up = layers.Conv2d(2, (1, 3, 3, 1), up=True)
    flipped = np.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    forward = down.apply({"params": {"weight": kernel, "bias": np.zeros(4)}}, jnp.asarray(x))
    backward = up.apply({"params": {"weight": flipped, "bias": np.zeros(2)}}, jnp.asarray(y))
    np.testing.assert_allclose(4 * jnp.vdot(forward, y), jnp.vdot(x, backward), rtol=1e-10)


def test_group_norm_survives_a_mean_that_dwarfs_the_spread():
    x = 1348.0 + np.random.default_rng(0).standard_normal((1, 64, 64, 8))
    params = {"scale": np.ones(8), "bias": np.zeros(8)}
    ours = layers.GroupNorm(2).apply({"params": params}, jnp.asarray(x, jnp.float32))
    exact = layers.GroupNorm(2).apply({"params": params}, jnp.asarray(x, jnp.float64))
    assert np.abs(ours - exact).max() < 0.05


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("progressive", "skip"),
        ("progressive_input", "output_skip"),
        ("resblock_type", "resnet"),
        ("embedding_type", "x"),
    ],
)
def test_an_unknown_switch_is_refused_by_key(key, value):
    with pytest.raises(ValueError, match=f"config.model.{key}='{value}' is unknown"):
        models.create_network("ncsnpp", {key: value})


def test_an_unknown_network_or_activation_is_refused():
    with pytest.raises(ValueError, match="config.model.name='unet'"):
        models.create_network("unet", {})
    with pytest.raises(ValueError, match="config.model.nonlinearity='gelu'"):
        layers.activation("gelu")
