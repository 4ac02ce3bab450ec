"""--mode=train --config FILE:classifier, from class folders to a file that guides a model; and what is refused."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Pillow

from builders.classifier import load_classifier, read_classifier
from builders.model import Model, create_denoiser
from checkpoints import native
from configs import base as base_config
from configs import methods
from modes import train
from modes.request import Request


def config_of(source):
    """Two updates of a very small classifier of 8-pixel images."""
    config = methods.apply(base_config.get_config(), "classifier")
    config.data.update(source=str(source), image_size=8, holdout=3)
    config.training.update(num_steps=2, batch_size=4, log_every=1)
    config.classifier.update(ch_mult=(1,), attn_resolutions=())
    return config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, brightness in (("dark", 40), ("light", 210)):
        (folder / name).mkdir()
        for index in range(6):
            pixels = np.full((8, 8, 3), brightness + index, np.uint8)
            Pillow.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def workdir(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("W")
    train.run(Request(config_of(pictures), folder))
    return folder


def model_of(size: int) -> Model:
    config = base_config.get_config()
    config.data.image_size = size
    config.model.update(nf=8, ch_mult=(1, 1))
    return Model(create_denoiser(config, {}), config)


def test_training_leaves_a_classifier_and_its_accuracy_by_noise_scale(workdir):
    lines = [json.loads(line) for line in (workdir / "accuracy.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2]
    assert lines[0]["n"] == 4  # every third of twelve
    assert set(lines[0]["accuracy"]) >= {"0.01", "1", "20"}
    classifier, classes = load_classifier(workdir / "checkpoints" / "classifier.safetensors", model_of(8))
    assert classes == 2
    found = classifier(jnp.zeros((3, 8, 8, 3)), jnp.full(3, 0.5), jnp.array([0, 1, 1]))
    assert found.shape == (3,) and (found < 0).all()


def test_training_goes_on_from_a_classifier(workdir, pictures, tmp_path):
    file = workdir / "checkpoints" / "classifier.safetensors"
    config = config_of(pictures)
    config.training.num_steps = 0
    train.run(Request(config, tmp_path, str(file)))
    again = tmp_path / "checkpoints" / "classifier.safetensors"
    for old, new in zip(*(jax.tree.leaves(read_classifier(f)[1]) for f in (file, again)), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-3)  # stored in half precision


def test_a_classifier_of_another_size_or_none_at_all_is_refused(workdir, tmp_path):
    file = workdir / "checkpoints" / "classifier.safetensors"
    with pytest.raises(ValueError, match=r"classifies images of shape \(8, 8, 3\), the model draws \(16, 16, 3\)"):
        load_classifier(file, model_of(16))
    with pytest.raises(FileNotFoundError, match="config.guidance.classifier='none.safetensors' is no file; train"):
        load_classifier("none.safetensors", model_of(8))
    other = tmp_path / "model.safetensors"
    native.write(other, {"a": np.zeros(2, np.float32)}, base_config.get_config().to_dict())
    with pytest.raises(ValueError, match="holds no classifier of noisy images"):
        load_classifier(other, model_of(8))


@pytest.mark.slow
def test_losses_go_to_tensorboard_on_request(pictures, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            written.append("closed")

        def add_scalar(self, name, value, step):
            written.append((name, step, value > 0))

    config = config_of(pictures)
    config.training.tensorboard = True
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # not installed
    with pytest.raises(ImportError, match=r'needs tensorboardX: pip install "\.\[tb\]"'):
        train.run(Request(config, tmp_path))
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    train.run(Request(config, tmp_path))
    assert written == [str(tmp_path / "tensorboard"), ("loss", 1, True), ("loss", 2, True), "closed"]


def test_images_without_classes_are_refused(pictures, tmp_path):
    with pytest.raises(ValueError, match="num_classes=1 must be at least 2: train it on images in class folders"):
        train.run(Request(config_of(pictures / "dark"), tmp_path))
