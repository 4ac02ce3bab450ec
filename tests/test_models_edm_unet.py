"""EDM's U-Nets against the published definition in NumPy (`edm_oracle`), and the published numbers of parameters."""

import math
import zlib

import edm_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from builders.model import create_network
from checkpoints import fitting, names
from configs import edm_pickle
from models import layers
from models.edm_unet import DhariwalUNet, SongUNet

NCSNPP = dict(embedding_type="fourier", channel_mult_noise=2, progressive_input="residual", fir_kernel=(1, 3, 3, 1))
PYRAMIDS = dict(progressive_input="input_skip", progressive="output_skip", fir_kernel=(1, 3, 3, 1))
VARIANTS = {
    "ddpmpp": (SongUNet(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)), {}),
    "ncsnpp": (
        SongUNet(nf=8, ch_mult=(1, 1, 2), num_res_blocks=0, attn_resolutions=(4,), num_classes=3, **NCSNPP),
        dict(fourier=True, encoder="residual", taps=(1, 3, 3, 1)),
    ),
    "pyramids": (
        SongUNet(nf=8, ch_mult=(1, 2), num_res_blocks=0, attn_resolutions=(8,), augment_dim=2, **PYRAMIDS),
        dict(encoder="skip", decoder="skip", taps=(1, 3, 3, 1)),
    ),
    "adm": (
        DhariwalUNet(
            nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), channel_mult_emb=2, num_head_channels=4,
            num_classes=3, augment_dim=2,
        ),
        dict(head_channels=4),
    ),
}  # fmt: skip


def torch_name(path):
    name = path.replace("/", ".").replace("enc_", "enc.").replace("dec_", "dec.")
    return name.replace(".kernel", ".weight").replace(".scale", ".weight")


def random_tensors(network, size):
    """Tensors under EDM's names and in its layouts, of the shapes of our network."""
    tensors = {}
    for path, shape in fitting.shapes(models.param_shapes(network, (size, size, 3))).items():
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)]
        value = rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]) or 1)
        tensors[torch_name(path)] = (value + path.endswith("scale")).transpose(order)
    return tensors


def fitted(network, tensors, dtype):
    expected = fitting.shapes(models.param_shapes(network, (8, 8, 3)))
    return fitting.fit(names.flax_names_dotted(tensors, expected), expected, "test", dtype)


def inputs(network):
    rng = np.random.default_rng(0)
    x, c_noise = rng.normal(size=(3, 3, 8, 8)), np.array([-1.2, 0.1, 1.1])
    classes = np.array([[1.0, 0, 0], [0, 0.3, 0.7], [0, 0, 1]]) if network.num_classes else None
    return x, c_noise, dict(classes=classes, augment=rng.normal(size=(3, 2)) if network.augment_dim else None)


def defined(variant, tensors, x, c_noise, **labels):
    network, settings = VARIANTS[variant]
    oracle = edm_oracle.song_unet if isinstance(network, SongUNet) else edm_oracle.dhariwal_unet
    where = (network.ch_mult, network.num_res_blocks, network.attn_resolutions)
    return oracle(tensors, x, c_noise, *where, **settings, **labels).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_equals_its_definition(variant):
    network, _ = VARIANTS[variant]
    tensors = random_tensors(network, 8)
    x, c_noise, labels = inputs(network)
    run = jax.jit(network.apply)
    arguments = {"params": fitted(network, tensors, np.float64)}, x.transpose(0, 2, 3, 1), c_noise
    output = run(*arguments, labels["classes"], labels["augment"])
    np.testing.assert_allclose(output, defined(variant, tensors, x, c_noise, **labels), atol=1e-12)
    if variant == "adm":
        np.testing.assert_allclose(run(*arguments), defined(variant, tensors, x, c_noise), atol=1e-12)


def test_integer_classes_are_one_hot_rows():
    network, _ = VARIANTS["adm"]
    embedding = jnp.zeros((2, 16))
    np.testing.assert_array_equal(network._class_rows(embedding, jnp.array([2, 0])), [[0, 0, 1], [1, 0, 0]])


def test_half_precision_stays_near_the_definition_and_leaves_the_head_alone():
    network, _ = VARIANTS["ddpmpp"]
    tensors = random_tensors(network, 8)
    x, c_noise, _ = inputs(network)
    params = fitted(network, tensors, np.float32)
    half = jax.jit(network.clone(dtype=jnp.bfloat16).apply)
    output = half({"params": params}, x.transpose(0, 2, 3, 1).astype(np.float32), c_noise.astype(np.float32))
    expected = defined("ddpmpp", tensors, x, c_noise)
    assert output.dtype == jnp.float32
    assert 1e-4 < np.abs(output - expected).max() < 0.1 * np.abs(expected).max()


# Numbers of parameters of the published networks, frequencies of the Fourier embedding apart.
PUBLISHED = [
    (32, dict(model_type="SongUNet", channel_mult=[2, 2, 2], augment_dim=9, label_dim=10), 55_735_299),
    (
        64,
        dict(model_type="SongUNet", augment_dim=9, channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
        | dict(embedding_type="fourier", encoder_type="residual", decoder_type="standard"),
        62_761_091,
    ),
    (64, dict(model_type="DhariwalUNet", label_dim=1000, use_fp16=True), 295_899_267),
]


@pytest.mark.parametrize("size, kwargs, parameters", PUBLISHED, ids=["cifar10", "ffhq", "imagenet"])
def test_the_arguments_of_published_pickles_build_networks_of_their_size(size, kwargs, parameters):
    architecture = {"class_name": "EDMPrecond", "init_kwargs": {"img_resolution": size, "img_channels": 3, **kwargs}}
    network = create_network(edm_pickle.translate(architecture, "net.pkl"))
    shapes = fitting.shapes(models.param_shapes(network, (size, size, 3)))
    assert sum(math.prod(shape) for name, shape in shapes.items() if name != "map_noise/freqs") == parameters


def test_an_unknown_switch_names_the_choices():
    with pytest.raises(ValueError, match=r"progressive_input='sum' is unknown; choose one of \('none'"):
        SongUNet(progressive_input="sum")
    with pytest.raises(KeyError):
        layers.attend_heads(jnp.zeros((1, 1, 3)), 1, "unknown")
