"""A detector is read tensor by tensor, and what does not fit is refused before anything runs.

The network is stood in for by a few tensors: test_models_inception.py has the real one.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writers import tensor, write_zip

from builders import detector as detectors
from builders.detector import load_detector
from models import inception
from models.inception_input import prepare

RNG = np.random.default_rng(0)


class Tiny(nn.Module):
    """One convolution in place of Inception."""

    variant: str = "pytorch_fid"

    @nn.compact
    def __call__(self, x):
        features = nn.Conv(4, (1, 1), use_bias=False, name="conv")(x).mean((1, 2))
        return inception.Outputs(
            features, nn.Dense(1008 if self.variant == "pytorch_fid" else 1000, name="fc")(features)
        )


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(inception, "InceptionV3", Tiny)
    monkeypatch.setattr(inception, "SIDE", 12)
    detectors.param_shapes.cache_clear()
    detectors._apply.clear_cache()
    yield
    detectors.param_shapes.cache_clear()
    detectors._apply.clear_cache()


def state(classes=1008, **others):
    weights = {"conv.weight": RNG.normal(size=(4, 3, 1, 1)), "fc.weight": RNG.normal(size=(classes, 4))}
    weights |= {"fc.bias": RNG.normal(size=classes)} | others
    return {name: value.astype(np.float32) for name, value in weights.items()}


def write(path, weights):
    write_zip(path, {name: tensor(value, name) for name, value in weights.items()}, weights)
    return path


def test_features_and_logits_are_the_networks_on_the_resized_images(tmp_path):
    weights = state()
    detector = load_detector(write(tmp_path / "w.pth", weights))
    images, done = RNG.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8), []
    features, logits = detector(images, done.append, per_device=2)
    shown = np.asarray(prepare(jnp.asarray(images), "pytorch_fid", 12), np.float64)
    expected = (shown @ weights["conv.weight"][:, :, 0, 0].T.astype(np.float64)).mean(axis=(1, 2))
    np.testing.assert_allclose(features, expected, atol=1e-5)
    # Without the bias, as programs that run the graph of 2015 take its logits.
    np.testing.assert_allclose(logits, expected @ weights["fc.weight"].T, atol=1e-4)
    assert sum(done) == len(images) and detector.kind == "pytorch_fid" and not detector.published


def test_torchvisions_logits_keep_their_bias_and_its_file_may_have_what_training_needs(tmp_path):
    weights = state(1000, **{"AuxLogits.fc.weight": np.zeros((1000, 768)), "bn.num_batches_tracked": np.zeros(1)})
    detector = load_detector(write(tmp_path / "w.pth", weights), input="tensorflow")
    features, logits = detector(np.zeros((1, 8, 8, 1), np.uint8))
    assert (detector.kind, detector.input) == ("torchvision", "tensorflow")
    np.testing.assert_allclose(logits, features @ weights["fc.weight"].T + weights["fc.bias"][None], atol=1e-4)


def test_the_published_file_is_known_by_its_hash():
    assert detectors.Detector("pytorch_fid", "pytorch_fid", None, "6726825d" + "0" * 56).published
    assert not detectors.Detector("torchvision", "pytorch_fid", None, "6726825d" + "0" * 56).published


def test_a_missing_file_says_which_to_get(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.eval.detector='.*no.pth' is no file. .*6726825d.pth"):
        load_detector(tmp_path / "no.pth")


def test_wrong_weights_are_listed(tmp_path):
    weights = state()
    weights["conv.weights"] = weights.pop("conv.weight")
    with pytest.raises(
        ValueError, match=r"(?s)does not hold 'pytorch_fid'.*1 missing: conv/kernel.*1 unexpected.*Give"
    ):
        load_detector(write(tmp_path / "a.pth", weights))
    with pytest.raises(ValueError, match=r"1 of another shape: conv/kernel \(1, 1, 3, 5\) instead of \(1, 1, 3, 4\)"):
        load_detector(write(tmp_path / "b.pth", state() | {"conv.weight": np.zeros((5, 3, 1, 1), np.float32)}))
    with pytest.raises(ValueError, match=r"detector_kind='pytorch_fid', but .*'torchvision' \(1000 classes\)"):
        load_detector(write(tmp_path / "c.pth", state(1000)), "pytorch_fid")
    (tmp_path / "d.pth").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="config.eval.detector: .* begins with b'<html>'.*Give the weights"):
        load_detector(tmp_path / "d.pth")


def test_unknown_words_name_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"detector_kind='clip' is unknown; choose one of \('pytorch_fid', 'torchv"):
        load_detector(tmp_path / "no.pth", "clip")
    with pytest.raises(ValueError, match=r"detector_input='pil' is unknown; choose one of \('pytorch_fid', 'tensor"):
        load_detector(tmp_path / "no.pth", input="pil")


def test_weights_that_are_not_finite_and_float_images_are_refused(tmp_path):
    weights = state() | {"conv.weight": np.full((4, 3, 1, 1), np.nan, np.float32)}
    detector = load_detector(write(tmp_path / "w.pth", weights))
    with pytest.raises(ValueError, match="features are not finite; the weight file is damaged"):
        detector(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"takes uint8 images .* got float64 \(1, 8, 8, 3\)"):
        detector(np.zeros((1, 8, 8, 3)))
