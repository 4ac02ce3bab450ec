"""The EncoderUNet classifier against guided-diffusion: logits, the gradient that guidance uses, the other pools."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
import models
from checkpoints import fitting, names
from models.classifier import EncoderUNet

PUBLISHED = EncoderUNet(
    nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), num_head_channels=16, num_classes=10
)


def nhwc(array):
    return np.moveaxis(array, 1, -1)


@functools.cache
def published():
    """(float64 parameters, inputs and recorded outputs)."""
    folder = golden_folder("adm")
    stored = checkpoints.read(folder / "adm_classifier_a.pt")
    expected = fitting.shapes(models.param_shapes(PUBLISHED, (8, 8, 3)))
    params = fitting.fit(names.network_names(stored, expected), expected, stored.path, np.float64)
    with np.load(folder / "adm_classifier_a_io.npz") as file:
        return jax.tree.map(jnp.asarray, params), {key: file[key] for key in file.files}


@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_logits_and_gradient_equal_guided_diffusion(dtype):
    params, io = published()
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    x, y = jnp.asarray(nhwc(io["x"]), dtype), jnp.asarray(io["y"])

    @functools.partial(jax.value_and_grad, has_aux=True)
    def log_prob(x):
        logits = PUBLISHED.apply({"params": params}, x, jnp.asarray(io["t"], jnp.float32))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).sum(), logits

    (_, logits), gradient = log_prob(x)
    np.testing.assert_allclose(logits, io["logits_f64"], atol=5e-7)
    np.testing.assert_allclose(gradient, nhwc(io["grad_logp_f64"]), atol=1e-5 * np.abs(io["grad_logp_f64"]).max())


def features(network, params, x, labels):
    """What the head sees, recorded from inside: the features of every input block and of the middle."""
    _, state = network.apply({"params": params}, x, labels, capture_intermediates=True, mutable=["intermediates"])
    recorded = {name: calls["__call__"][0] for name, calls in state["intermediates"].items() if "__call__" in calls}
    blocks = [name for name in recorded if name.startswith("input_blocks")]
    last = {name.split("_")[2]: name for name in sorted(blocks)}  # attention, where present, follows its block
    return [recorded[last[str(i)]] for i in range(len(last))] + [recorded["middle_block_2"]]


def group_norm(x, p, axes):
    grouped = x.reshape(*x.shape[:-1], 32, -1)
    axes = (*axes, -1)
    normal = (grouped - grouped.mean(axes, keepdims=True)) / np.sqrt(grouped.var(axes, keepdims=True) + 1e-5)
    return normal.reshape(x.shape) * p["scale"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2"])
def test_the_other_pools_are_means_through_linear_layers(pool):
    network = PUBLISHED.clone(pool=pool)
    rng = np.random.default_rng(0)
    draw = lambda leaf: 0.2 * rng.normal(size=leaf.shape)  # noqa: E731
    p = jax.tree.map(draw, models.param_shapes(network, (8, 8, 3)))
    x, labels = jnp.asarray(rng.normal(size=(2, 8, 8, 3))), jnp.asarray([3.0, 700.0])
    maps = [np.asarray(m) for m in features(network, p, x, labels)]
    means = np.concatenate([m.mean((1, 2)) for m in maps], -1)

    def linear(h, layer):
        return h @ layer["kernel"].reshape(h.shape[-1], -1) + layer["bias"]

    if pool == "adaptive":
        expected = linear(silu(group_norm(maps[-1], p["out_0"], (1, 2))).mean((1, 2)), p["out_3"])
    elif pool == "spatial":
        expected = linear(np.maximum(linear(means, p["out_0"]), 0), p["out_2"])
    else:
        hidden = group_norm(linear(means, p["out_0"]), p["out_1"], ())
        expected = linear(silu(hidden), p["out_3"])
    np.testing.assert_allclose(network.apply({"params": p}, x, labels), expected, rtol=1e-9, atol=1e-9)


def test_an_unknown_pool_names_the_choices():
    with pytest.raises(ValueError, match=r"pool='mean' is unknown; choose one of \('attention', 'adaptive'"):
        EncoderUNet(pool="mean")
