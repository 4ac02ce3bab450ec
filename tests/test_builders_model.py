"""From a config to a network: what goes in and comes out, by shapes alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from builders.model import create_denoiser, create_network
from configs import base


def small(name, **changes):
    config = base.get_config()
    config.data.image_size = 8
    config.model.update(dict(name=name, nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), **changes))
    return config


@pytest.mark.parametrize("name, progressive", [("ncsnpp", "none"), ("ncsnpp", "output_skip"), ("adm", "none")])
def test_a_network_of_two_predictions_puts_out_two_images(name, progressive):
    for predicts, heads in (("v", 1), ("both", 2)):
        config = small(name, progressive=progressive, predicts=predicts)
        network = create_network(config)
        params = models.param_shapes(network, (8, 8, 3))
        out = jax.eval_shape(lambda p, n=network: n.apply({"params": p}, jnp.zeros((2, 8, 8, 3)), jnp.ones(2)), params)
        assert out.shape == (2, 8, 8, 3 * heads)


def test_the_denoiser_of_two_predictions_reads_both_and_no_more():
    config = small("ncsnpp", predicts="both")
    config.sde.name = "vpsde"
    denoiser = create_denoiser(config, None)
    x, sigma = jnp.ones((2, 1, 1, 1)), denoiser.sde.sigma(jnp.float32(0.5))

    def heads(params, x, labels):
        return jnp.concatenate([0 * x + 0.3, 0 * x - 0.2, 0 * x + 99], axis=-1)

    found = dataclasses.replace(denoiser, network=heads).score(x, jnp.full(2, 0.5, jnp.float32))
    alpha = denoiser.sde.alpha(jnp.float32(0.5))
    x0 = sigma**2 * 0.3 + alpha * (1 - sigma * -0.2)
    np.testing.assert_allclose(found, jnp.broadcast_to(-(1 - alpha * x0) / sigma**2, x.shape), rtol=1e-6)


def test_an_architecture_without_a_second_image_is_refused():
    with pytest.raises(ValueError, match="config.model.predicts='both' needs twice the channels"):
        create_network(small("ddpm", predicts="both"))
