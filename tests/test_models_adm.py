"""ADM's U-Net against guided-diffusion, and what the recorded network does not show against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
import models
from checkpoints import fitting, names
from models import adm, layers

PUBLISHED = adm.ADM(
    nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,), num_heads=4, num_head_channels=16, num_classes=10
)


def nhwc(array):
    return np.moveaxis(array, 1, -1)


@functools.cache
def published():
    """(float64 parameters, inputs, recorded outputs NHWC)."""
    folder = golden_folder("adm")
    stored = checkpoints.read(folder / "adm_unet_cond.pt")
    expected = fitting.shapes(models.param_shapes(PUBLISHED, (8, 8, 3)))
    params = fitting.fit(names.network_names(stored, expected), expected, stored.path, np.float64)
    with np.load(folder / "adm_unet_cond_io.npz") as file:
        io = {key: nhwc(file[key]) if file[key].ndim == 4 else file[key] for key in file.files}
    return jax.tree.map(jnp.asarray, params), io


def run(network, params, io, dtype, **changes):
    arguments = {"x": jnp.asarray(io["x"], dtype), "classes": jnp.asarray(io["y"])} | changes
    labels = jnp.asarray(io["t"], jnp.float32)  # the embedding is built in float32, as in the recording
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return jax.jit(network.apply)({"params": cast}, arguments.pop("x"), labels, **arguments)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_the_unet_equals_guided_diffusion(dtype):
    params, io = published()
    output = run(PUBLISHED, params, io, dtype)
    assert output.dtype == dtype and output.shape == (3, 8, 8, 6)
    np.testing.assert_allclose(output, io["out_f64"], atol=5e-6)


def test_a_half_precision_torso_is_as_far_off_as_the_published_one():
    params, io = published()
    output = run(PUBLISHED.clone(dtype=jnp.float16), params, io, jnp.float32)
    published_gap = np.abs(io["out_fp16torso"] - io["out"]).max()
    assert output.dtype == jnp.float32
    assert 0.2 * published_gap < np.abs(output - io["out"]).max() < 2 * published_gap


def test_the_two_attention_orders_are_one_network_with_its_rows_permuted():
    params, io = published()
    params = jax.tree.map(lambda leaf: leaf, params)
    heads, d = 2, 16

    def new_order(leaf):
        split = leaf.reshape(*leaf.shape[:-1], heads, 3, d)
        return jnp.moveaxis(split, -2, -3).reshape(leaf.shape)

    for block in params.values():
        if "qkv" in block:
            block["qkv"] = {name: new_order(leaf) for name, leaf in block["qkv"].items()}
    network = PUBLISHED.clone(use_new_attention_order=True)
    np.testing.assert_allclose(run(network, params, io, jnp.float64), io["out_f64"], atol=5e-6)
    assert np.abs(run(PUBLISHED, params, io, jnp.float64) - io["out_f64"]).max() > 1e-2


@pytest.mark.parametrize("order, axis", [("new", 2), ("legacy", 3), ("interleaved", 4)])
def test_attention_is_a_softmax_average_head_by_head(order, axis):
    b, n, heads, d = 2, 5, 3, 4
    qkv = np.random.default_rng(0).normal(size=(3, b, n, heads, d))
    expected = np.empty((b, n, heads, d))
    for i, h in np.ndindex(b, heads):
        q, k, v = qkv[:, i, :, h]
        weights = np.exp(q @ k.T / np.sqrt(d))
        expected[i, :, h] = weights / weights.sum(1, keepdims=True) @ v
    stored = np.moveaxis(qkv, 0, axis).reshape(b, n, -1)
    np.testing.assert_allclose(
        layers.attend_heads(jnp.asarray(stored), heads, order), expected.reshape(b, n, -1), rtol=1e-12
    )


# --- the switches of the older networks, against the definition in NumPy, NCHW as published ---------------------------


def group_norm(x, p):
    groups = x.reshape(len(x), 32, -1)
    groups = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    return groups.reshape(x.shape) * p["scale"][:, None, None] + p["bias"][:, None, None]


def convolve(x, p, stride=1):
    size = p["kernel"].shape[0]
    x = np.pad(x, ((0, 0), (0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ijco->bohw", windows, p["kernel"]) + p["bias"][:, None, None]


def silu(x):
    return x / (1 + np.exp(-x))


def random_params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


@pytest.mark.parametrize("resampling", [{}, {"up": True}, {"down": True}])
def test_a_block_without_scale_and_shift_adds_the_embedding_before_its_second_norm(resampling):
    x = np.random.default_rng(2).normal(size=(2, 32, 4, 4))
    embedding = np.random.default_rng(3).normal(size=(2, 24))
    block = adm.ResBlock(64, scale_shift=False, **resampling)
    p = random_params(block, jnp.asarray(nhwc(x)), jnp.asarray(embedding))

    def resample(h):
        if "up" in resampling:
            return h.repeat(2, 2).repeat(2, 3)
        return h.reshape(2, 32, 2, 2, 2, 2).mean((3, 5)) if "down" in resampling else h

    h = convolve(resample(silu(group_norm(x, p["in_layers_0"]))), p["in_layers_2"])
    added = silu(embedding) @ p["emb_layers_1"]["kernel"] + p["emb_layers_1"]["bias"]
    h = convolve(silu(group_norm(h + added[:, :, None, None], p["out_layers_0"])), p["out_layers_3"])
    expected = convolve(resample(x), p["skip_connection"]) + h
    out = block.apply({"params": p}, jnp.asarray(nhwc(x)), jnp.asarray(embedding))
    np.testing.assert_allclose(out, nhwc(expected), atol=1e-10)


def test_resampling_by_convolution_pads_both_sides():
    x = np.random.default_rng(4).normal(size=(2, 3, 6, 6))
    for module, expected in (
        (adm.Downsample(True), lambda p: convolve(x, p["op"], stride=2)),
        (adm.Upsample(True), lambda p: convolve(x.repeat(2, 2).repeat(2, 3), p["conv"])),
    ):
        p = random_params(module, jnp.asarray(nhwc(x)))
        np.testing.assert_allclose(module.apply({"params": p}, jnp.asarray(nhwc(x))), nhwc(expected(p)), atol=1e-12)


def test_without_resampling_blocks_the_tensors_have_their_other_published_names():
    network = PUBLISHED.clone(resblock_updown=False, num_classes=0, learn_sigma=False, num_heads_upsample=4)
    shapes = fitting.shapes(models.param_shapes(network, (8, 8, 3)))
    assert shapes["input_blocks_2_0/op/kernel"] == (3, 3, 32, 32)
    assert shapes["output_blocks_1_2/conv/kernel"] == (3, 3, 32, 32)
    assert shapes["out_2/kernel"] == (3, 3, 32, 3) and not any(name.startswith("label_emb") for name in shapes)


def test_heads_are_counted_by_number_where_their_width_is_not_set():
    counted = PUBLISHED.clone(num_head_channels=-1, num_heads=2)
    params, io = published()
    np.testing.assert_allclose(run(counted, params, io, jnp.float64), io["out_f64"], atol=5e-6)
    other = run(counted.clone(num_heads_upsample=4), params, io, jnp.float64)
    assert np.abs(other - io["out_f64"]).max() > 1e-3
    with pytest.raises(ValueError, match=r"32 channels do not divide .*num_heads=5"):
        models.param_shapes(counted.clone(num_heads=5), (8, 8, 3))


def test_an_upsampler_sees_the_small_image_beside_the_noise():
    network = PUBLISHED.clone(super_resolution=True, num_classes=0)
    shapes = fitting.shapes(models.param_shapes(network, (8, 8, 3)))
    assert shapes["input_blocks_0_0/kernel"] == (3, 3, 6, 32) and shapes["out_2/kernel"] == (3, 3, 32, 6)
    x, ramp = jnp.zeros((2, 8, 8, 3)), jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (2, 4, 4, 3))
    joined = adm.join_enlarged(x, ramp)
    # Between pixel centres, and constant outside them (align_corners false).
    rows = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(joined[..., 3:], np.broadcast_to(rows[:, None, None], (2, 8, 8, 3)), rtol=1e-10)
    np.testing.assert_array_equal(joined[..., :3], x)
    params, io = published()
    with pytest.raises(ValueError, match=r"enlarges images and was given none.*low_res"):
        run(network, params, io, jnp.float64)


def test_a_conditional_network_without_classes_says_how_to_name_them():
    params, io = published()
    with pytest.raises(ValueError, match=r"conditional on 10 classes and was given none; .*--labels"):
        run(PUBLISHED, params, io, jnp.float64, classes=None)
