"""What our networks are timed against computes the same: published filters and normalisation, diffusers' weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from benchmarks.peers import ncsnpp_original, unet2d
from builders.model import create_network
from checkpoints import fitting
from models import layers, resample

TAPS = (1.0, 3.0, 4.0, 2.0)  # no symmetry, so that a filter laid the wrong way round shows


@pytest.mark.parametrize("filters", [ncsnpp_original.one_channel, ncsnpp_original.depthwise])
def test_the_published_filters_are_those_of_ours(filters):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4, 3)))
    theirs = ncsnpp_original.resampling(filters)
    for name, arguments in (
        ("fir_upsample", (TAPS,)),
        ("fir_downsample", (TAPS,)),
        ("fir_downsample", (TAPS, True)),
        ("fir_filter", (TAPS, 2, 1, 2.0)),
    ):
        ours = getattr(resample, name)(x, *arguments)
        np.testing.assert_allclose(theirs[name](x, *arguments), ours, rtol=1e-12, atol=1e-12, err_msg=name)


def test_the_published_normalisation_is_that_of_flax_and_of_ours():
    rng = np.random.default_rng(0)
    x, scale, bias = (jnp.asarray(rng.normal(size=shape)) for shape in ((2, 3, 5, 8), 8, 8))
    theirs = ncsnpp_original.normalize_groups(x, scale, bias, 4, 1e-2)
    of_flax = nn.GroupNorm(4, epsilon=1e-2).apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(theirs, of_flax, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(theirs, layers.normalize_groups(x, scale, bias, 4, 1e-2), rtol=1e-12, atol=1e-12)


def test_use_replaces_what_the_networks_call(monkeypatch):
    kept = {name: getattr(resample, name) for name in ("fir_filter", "fir_upsample", "fir_downsample")}
    for module in (layers, resample, ncsnpp_original.unet2d, ncsnpp_original.edm_unet):
        for name in (*kept, "normalize_groups"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    config = unet2d.get_config("demo")
    config.data.image_size = 16

    def program():
        network = create_network(config)
        x, labels = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
        params = {"params": models.param_shapes(network, (16, 16, 3))}
        return str(jax.make_jaxpr(lambda *inputs: network.apply(*inputs))(params, x, labels))

    ncsnpp_original.use("depthwise")
    assert "feature_group_count=64" in program()
    assert resample.fir_filter is not kept["fir_filter"]  # of the layer that filters before a convolution
    assert layers.normalize_groups is ncsnpp_original.normalize_groups


def test_the_weights_of_diffusers_are_ours_under_its_names():
    network = create_network(unet2d.get_config("demo"))
    shapes = dict(fitting.shapes(models.param_shapes(network, (32, 32, 3))))
    weights = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    kernel = "down_blocks_0_resnets_1/conv1/kernel"
    weights[kernel] = np.arange(weights[kernel].size, dtype=np.float32).reshape(weights[kernel].shape)
    asked = {"down_blocks.0.resnets.1.conv1.weight": (32, 32, 3, 3)}
    with pytest.raises(ValueError, match="tensors here, 1 in diffusers' network"):
        unet2d.state_dict(weights, asked)
    found = unet2d.state_dict({kernel: weights[kernel]}, asked)["down_blocks.0.resnets.1.conv1.weight"]
    assert found[5, 7, 1, 2] == weights[kernel][1, 2, 7, 5]
    with pytest.raises(ValueError, match="conv9.weight has no counterpart"):
        unet2d.state_dict(weights, {"conv9.weight": (1,)})
    with pytest.raises(ValueError, match=r"is \(32, 32\), ours \(32, 32, 3, 3\)"):
        unet2d.state_dict({kernel: weights[kernel]}, {"down_blocks.0.resnets.1.conv1.weight": (32, 32)})
