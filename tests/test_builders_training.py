"""config.training, config.optim and config.data as every trainer gets them."""

import dataclasses

import numpy as np
import pytest

from builders import training as builder
from configs import base
from training import loop


@pytest.fixture
def config(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "seven.npz", pixels, np.arange(7) % 4)
    made = base.get_config()
    made.seed = 9
    made.data.update(source=str(tmp_path / "seven.npz"), image_size=8, random_flip=True, holdout=3)
    made.training.update(batch_size=5, num_steps=11, ema_rate=0.9, log_every=2, sample_every=3, checkpoint_every=4)
    return made, pixels


def test_batches_are_of_images_that_are_not_held_out_in_the_order_of_the_seed(config):
    config, pixels = config
    batches = builder.create_batches(config)
    assert (batches.batch_size, batches.seed, batches.flip) == (5, 9, True)
    np.testing.assert_array_equal(batches.images, pixels[[1, 2, 4, 5]])
    np.testing.assert_array_equal(batches.labels, [1, 2, 0, 1])
    images, labels = builder.judged_images(config)
    np.testing.assert_array_equal(images, pixels[[0, 3, 6]])
    np.testing.assert_array_equal(labels, [0, 3, 2])
    config.data.update(holdout=0, random_flip=False)
    assert len(builder.create_batches(config).images) == 7 and not builder.create_batches(config).flip


def test_the_loop_has_the_settings_of_the_config(config):
    found = dataclasses.asdict(builder.loop_settings(config[0]))
    assert found == {"num_steps": 11, "batch_size": 5, "microbatch": 0, "ema_rate": 0.9} | {
        "log_every": 2,
        "sample_every": 3,
        "checkpoint_every": 4,
    }


def test_the_optimiser_has_the_settings_of_the_config(config, tmp_path, monkeypatch):
    config = config[0]
    settings = {"lr": 0.5, "beta1": 0.3, "eps": 1e-3, "warmup": 7, "grad_clip": 2.0, "weight_decay": 0.1}
    config.optim.update(settings | {"schedule": "linear"})
    asked = {}

    def remember(**settings):
        asked.update(settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "create_optimizer", remember)
        builder.run_loop(config, None, {}, None, tmp_path, lambda state: None)
    assert asked == settings | {"schedule": "linear", "num_steps": 11}
