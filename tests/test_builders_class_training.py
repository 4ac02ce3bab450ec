"""Training a class-conditional network: it is told the class of each image, or none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
import sde_lib
from builders.class_training import create_tell
from configs import base
from configs.vp.v_diffusion import imagenet64
from models.denoiser import Denoiser
from modes.request import Request
from training import score_matching
from training.score_matching import ScoreMatching

MEANS = jnp.array([-0.5, 0.25, 0.75, 7.0])  # of the images of classes 0 to 2; 3 means none
LABELS = np.array([0, 1, 2, 2, 1, 0, 1, 2])


def config_of(classes=4, none=3, dropout=0.0):
    config = base.get_config()
    config.data.update(num_classes=classes, null_class=none)
    config.model.name = "adm"
    config.training.label_dropout = dropout
    return config


def losses(config, labels):
    """Of the exact score of point masses at MEANS[class], on images that are those points."""

    def network(params, x, t, classes=None):
        return (x - MEANS[classes][:, None, None, None]) / SDE.sigma(t)[:, None, None, None]

    denoiser, keys = Denoiser(None, network, SDE, "eps", "t"), jax.random.split(jax.random.key(3), len(LABELS))
    told = create_tell(config, labels)(denoiser, {"label": jnp.asarray(LABELS)}, keys)
    x0 = jnp.broadcast_to(MEANS[LABELS][:, None, None, None], (len(LABELS), 2, 2, 1))
    return score_matching.loss(ScoreMatching(), told, x0, keys)


SDE = sde_lib.VESDE()


def test_the_network_is_told_the_class_of_each_image():
    np.testing.assert_allclose(losses(config_of(), LABELS), 0, atol=1e-10)


def test_a_class_that_is_left_out_is_told_as_none():
    found = np.asarray(losses(config_of(dropout=0.5), LABELS))
    assert 0 < np.sum(found < 1e-10) < len(LABELS) and np.isfinite(found).all()


def test_a_network_without_classes_is_told_nothing():
    denoiser = Denoiser(None, lambda params, x, t: x, SDE, "eps", "t")
    assert create_tell(config_of(classes=0, none=-1), LABELS)(denoiser, {}, jnp.zeros(0)) is denoiser


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": 2, "none": -1},
            "labels from 0 to 2, the network the classes 0 to 1: set --config.data.num_classes=3",
        ),
        ({"none": -1, "dropout": 0.1}, "label_dropout=0.1 needs a class that means none: config.data.null_class"),
        ({"classes": 0, "none": -1, "dropout": 0.1}, "leaves classes out, and this network is told none"),
        ({"dropout": 1.0}, "label_dropout=1.0 must be a share"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        create_tell(config_of(**changes), LABELS)


@pytest.mark.slow
def test_a_class_conditional_network_is_trained_and_guided_away_from_no_class(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "pictures.npz", images=images, labels=np.arange(12) % 3)
    config = imagenet64.get_config()
    config.model.update(nf=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), emb_ch=16, num_head_channels=16)
    config.data.update(image_size=8, num_classes=3, null_class=3, source=str(tmp_path / "pictures.npz"))
    config.training.update(num_steps=2, batch_size=4, microbatch=0, label_dropout=0.2, log_every=1, sample_every=2)
    config.training.checkpoint_every, config.sampling.microbatch = 2, 4
    run_lib.MODES["train"](Request(config, tmp_path))
    model = run_lib.load(None, tmp_path / "checkpoints" / "model.safetensors")
    drawn = {}
    for scale in (1.0, 3.0):
        model.config.guidance.cfg_scale = scale
        drawn[scale] = run_lib.sample(model, {"method": "ddim", "num_steps": 2, "labels": "2"}, range(2))
    assert drawn[3.0].nfe == 2 * drawn[1.0].nfe
    assert not np.array_equal(drawn[3.0].images, drawn[1.0].images)
