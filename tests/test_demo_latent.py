"""The shipped latent model, demo/latent64.safetensors: it fits its config, says its scale and brings its codec."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
from builders import schedules

CONFIG = "configs/latent/flowers64.py"
FILE = Path(__file__).parent.parent / "demo" / "latent64.safetensors"


@pytest.fixture(scope="module")
def model():
    return run_lib.load(CONFIG)


def test_one_small_file_holds_the_network_and_the_codec(model):
    assert FILE.stat().st_size < 6e6
    assert model.shape == (16, 16, 4) and model.image_shape == (64, 64, 3) and model.codec.factor == 4
    assert model.config.latent.scale_factor == model.codec.scale_factor > 0
    alone = run_lib.load(checkpoint=FILE)  # by the config in the file
    assert alone.config.model == model.config.model and alone.codec.scale_factor == model.codec.scale_factor


def test_the_shipped_schedule_is_of_its_weights(model):
    config = run_lib.load_config_file(f"{CONFIG}:ld3")
    config.sampling.num_steps = 5
    found = schedules.read_schedule(model, config)
    assert found.checkpoint == model.weights_hash
    assert schedules.create_learned_sampler(model, config, found).nfe == 5


@pytest.mark.slow
def test_the_codec_keeps_the_layout_and_colours_of_a_smooth_picture(model):
    down, across = np.mgrid[:64, :64] / 63
    picture = np.stack([0.8 * np.cos(3 * down), 0.7 * across - 0.3, -0.5 * down * across], -1)[None].astype(np.float32)
    latents = model.encode(picture)
    assert latents.shape == (1, 16, 16, 4) and 0.2 < latents.std() < 3
    error = np.square(model.decode(latents) - picture).mean()
    grey = np.square(np.asarray(model.decode(jnp.zeros((1, 16, 16, 4)))) - picture).mean()
    assert np.sqrt(error) < 0.3 and error < 0.3 * grey  # of a range of 2
