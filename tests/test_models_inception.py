"""Inception v3 against pytorch-fid's and torchvision's networks with random weights, and the ways to show it images."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder
from PIL import Image as Pillow

from benchmarks.random_weights import random_state_dict
from builders.detector import param_shapes
from checkpoints import fitting, names
from models import inception
from models.inception_input import prepare, resize_weights

EVERY = 32  # features and logits that the golden file keeps


@functools.cache
def golden():
    with np.load(golden_folder("metrics") / "inception.npz") as file:
        return dict(file)


def torch_shapes(kind):
    """Of our parameters under torch's names and in its layouts."""
    found = {}
    for path, shape in param_shapes(kind).items():
        name = path.replace("/", ".").replace(".kernel", ".weight").replace(".scale", ".weight")
        found[name] = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
    return found


@functools.cache
def params(kind):
    weights = names.flax_names_dotted(random_state_dict(torch_shapes(kind)), param_shapes(kind))
    return jax.tree.map(jnp.asarray, fitting.fit(weights, param_shapes(kind), "random weights"))


@pytest.mark.parametrize("kind", inception.VARIANTS)
def test_names_and_shapes_are_those_of_the_published_files(kind):
    lines = sorted(f"{name} {shape}" for name, shape in torch_shapes(kind).items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == golden()[f"{kind}_names"]


def check_outputs(kind, size, x, tolerance=1e-4):
    found = jax.jit(inception.InceptionV3(kind).apply)({"params": params(kind)}, jnp.asarray(x))
    for part in ("features", "logits"):
        expected = golden()[f"{kind}_{size}_{part}"]
        np.testing.assert_allclose(getattr(found, part)[:, ::EVERY], expected, atol=tolerance * expected.std())


@pytest.mark.parametrize("kind", [inception.VARIANTS[0], pytest.param(inception.VARIANTS[1], marks=pytest.mark.slow)])
def test_outputs_are_those_of_the_torch_networks(kind):
    check_outputs(kind, "small", np.random.default_rng(0).uniform(-1, 1, (1, 107, 107, 3)).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", inception.VARIANTS)
def test_outputs_of_images_that_were_enlarged_are_those_of_pytorch_fid(kind):
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    check_outputs(kind, "full", prepare(jnp.asarray(images), "pytorch_fid", inception.SIDE))


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("kind", inception.VARIANTS)
def test_outputs_are_those_of_an_installed_torchvision(kind):
    """`weights=None`: nothing is downloaded. The other variant needs pytorch-fid, for its blocks, besides."""
    pytest.importorskip("torch")
    if kind == "pytorch_fid":
        pytest.importorskip("pytorch_fid")
    peer = pytest.importorskip("benchmarks.peers.inception_torch")
    try:
        network = peer.create(kind)
    except ImportError:
        pytest.skip("no torchvision")
    x = np.random.default_rng(4).uniform(-1, 1, (2, 120, 139, 3)).astype(np.float32)
    expected = peer.outputs(network, x)
    found = jax.jit(inception.InceptionV3(kind).apply)({"params": params(kind)}, jnp.asarray(x))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.std())


@pytest.mark.parametrize("size", [2, 3])
def test_the_two_averages_at_a_border_differ_by_what_is_counted(size):
    x = jnp.ones((1, size, size, 1))
    assert inception.average_pool(x, False).min() == 1
    np.testing.assert_allclose(inception.average_pool(x, True)[0, 0, 0, 0], 4 / 9, rtol=1e-6)


def test_an_unknown_variant_names_the_choices():
    with pytest.raises(ValueError, match=r"'inception_v4' is unknown; choose one of \('pytorch_fid', 'torchvision'\)"):
        inception.InceptionV3("inception_v4")


# Images on their way to the network.


@pytest.mark.parametrize(("size", "side"), [(32, 299), (37, 20), (5, 5)])
def test_pytorchs_resizing_is_linear_between_pixel_centres(size, side):
    x = np.random.default_rng(2).uniform(size=size)
    expected = jax.image.resize(jnp.asarray(x), (side,), "linear", antialias=False)
    np.testing.assert_allclose(resize_weights("pytorch_fid", size, side) @ x, expected, atol=1e-6)


def test_tensorflows_resizing_keeps_the_first_pixel_and_repeats_the_last():
    np.testing.assert_allclose(resize_weights("tensorflow", 2, 4) @ [1.0, 3.0], [1, 2, 3, 3])
    np.testing.assert_allclose(resize_weights("tensorflow", 4, 3) @ [0.0, 3.0, 6.0, 9.0], [0, 4, 8])


@pytest.mark.parametrize(("height", "width"), [(24, 37), (61, 90)])
def test_clean_fids_resizing_is_pillows(height, width):
    images = np.random.default_rng(3).integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    planes = [Pillow.fromarray(images[0, ..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(plane.resize((45, 45), Pillow.Resampling.BICUBIC)) for plane in planes]
    expected = (np.clip(np.stack(resized, axis=-1), 0, 255) - 128) / 128
    np.testing.assert_allclose(prepare(jnp.asarray(images), "clean_fid", 45)[0], expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "black", "white"), [("pytorch_fid", -1, 1), ("tensorflow", -1, 127 / 128)])
def test_black_and_white_keep_their_values_and_grey_images_get_three_channels(kind, black, white):
    images = np.stack([np.zeros((4, 6, 1), np.uint8), np.full((4, 6, 1), 255, np.uint8)])
    shown = prepare(jnp.asarray(images), kind, 9)
    assert shown.shape == (2, 9, 9, 3) and shown.dtype == jnp.float32
    np.testing.assert_allclose(shown[0], black, atol=1e-6)
    np.testing.assert_allclose(shown[1], white, atol=1e-6)


def test_rows_and_columns_are_not_mixed_up():
    image = np.zeros((1, 4, 8, 1), np.uint8)
    image[0, 3] = 255
    shown = prepare(jnp.asarray(image), "pytorch_fid", 16)[0, ..., 0]
    assert (shown[-1] == 1).all() and (shown[0] == -1).all()


def test_an_unknown_input_names_the_choices():
    with pytest.raises(ValueError, match=r"config.eval.detector_input='pil' is unknown; choose one of"):
        prepare(jnp.zeros((1, 4, 4, 3)), "pil", 8)
