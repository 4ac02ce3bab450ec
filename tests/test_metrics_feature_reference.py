"""Reference statistics are read from every layout that people own, and what they are not is refused."""

import pickle

import numpy as np
import pytest

from checkpoints import numpy_pickle
from checkpoints.pickle_data import RefusedPickle
from metrics import feature_reference
from metrics.feature_reference import FeatureReference, feature_moments, is_feature_file, load, save, thinned
from metrics.frechet import moments

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(50, 6)).astype(np.float32)
FIT = moments(FEATURES)
IMAGES = RNG.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_edm_pytorch_fid_and_clean_fid_files_are_moments_of_unknown_n(tmp_path):
    found = load(write(tmp_path / "cifar10-32x32.npz", mu=FIT.mean, sigma=FIT.covariance))
    assert (found.layout, found.name, found.moments.n, found.image_shape) == (
        "moments",
        "cifar10-32x32",
        None,
        (32, 32, 3),
    )
    np.testing.assert_array_equal(found.moments.covariance, FIT.covariance)
    assert found.sha256 == feature_reference.file_hash(tmp_path / "cifar10-32x32.npz")


def test_adm_files_bring_their_images_and_the_size_of_them(tmp_path):
    arrays = dict(mu=FIT.mean, sigma=FIT.covariance, mu_s=np.zeros(3), sigma_s=np.eye(3))
    found = load(write(tmp_path / "VIRTUAL_imagenet256_labeled.npz", **arrays, arr_0=IMAGES))
    assert (found.layout, found.image_shape) == ("adm", (8, 8, 3))
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.moments.mean, FIT.mean)
    without = load(write(tmp_path / "VIRTUAL.npz", **arrays))
    assert without.images is None and without.image_shape is None


def test_a_batch_of_images_has_no_moments_yet(tmp_path):
    found = load(write(tmp_path / "samples.npz", arr_0=IMAGES, arr_1=np.zeros(5, int)))
    assert (found.layout, found.moments, found.image_shape) == ("images", None, (8, 8, 3))


@pytest.mark.parametrize("axes", [(), (1, 1)])
def test_score_sde_files_are_activations_whose_moments_are_taken(tmp_path, axes):
    found = load(write(tmp_path / "cifar10_stats.npz", pool_3=FEATURES.reshape(50, *axes, 6), logits=np.zeros((50, 2))))
    assert (found.layout, found.moments.n) == ("score_sde", 50)
    np.testing.assert_allclose(found.moments.covariance, np.cov(FEATURES.T.astype(np.float64)), rtol=1e-10)
    np.testing.assert_array_equal(found.features, FEATURES)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_edm2_pickles_are_read_as_data(tmp_path, protocol):
    tree = {"fid": {"mu": FIT.mean, "sigma": FIT.covariance.T}, "fd_dinov2": {"mu": np.zeros(9), "sigma": np.eye(9)}}
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps(tree, protocol=protocol))
    found = load(tmp_path / "img512.pkl")
    assert is_feature_file(tmp_path / "img512.pkl") and found.layout == "edm2"
    np.testing.assert_array_equal(found.moments.mean, FIT.mean)
    np.testing.assert_array_equal(found.moments.covariance, FIT.covariance.T)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_a_pickle_keep_their_rows_and_columns(tmp_path, order):
    table = np.array([[1, 2, 3], [4, 5, 6]], order=order)
    (tmp_path / "table.pkl").write_bytes(pickle.dumps([{"table": table}, (2.5, "word")], protocol=4))
    (first, rest) = numpy_pickle.read(tmp_path / "table.pkl")
    np.testing.assert_array_equal(first["table"], [[1, 2, 3], [4, 5, 6]])
    assert rest == (2.5, "word")


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, capsys):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"fid": Hostile()}, protocol=4))
    with pytest.raises(RefusedPickle, match="print"):
        load(tmp_path / "bad.pkl")
    assert capsys.readouterr().out == ""


def test_other_pickles_are_refused(tmp_path):
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"is": 3.0}, protocol=4))
    with pytest.raises(ValueError, match=r"holds \['is'\], no mu and sigma under 'fid'"):
        load(tmp_path / "other.pkl")
    (tmp_path / "words.pkl").write_bytes(pickle.dumps({"fid": np.array(["a"])}, protocol=4))
    with pytest.raises(ValueError, match="holds an array that cannot be read"):
        numpy_pickle.read(tmp_path / "words.pkl")


def test_what_is_saved_is_read_back(tmp_path):
    made = FeatureReference(
        "set", "own", "a" * 64, FIT, FEATURES, None, (8, 8, 3), "torchvision", "b" * 64, "clean_fid"
    )
    with open(tmp_path / "own.npz", "wb") as file:
        save(file, made)
    found = load(tmp_path / "own.npz")
    np.testing.assert_array_equal(found.features, made.features)
    np.testing.assert_array_equal(found.moments.covariance, FIT.covariance)
    assert found.moments.n == 50
    assert found._replace(features=None, moments=None) == made._replace(features=None, moments=None)


def test_moments_in_chunks_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(feature_reference, "_CHUNK", 7)
    found = feature_moments(FEATURES)
    np.testing.assert_allclose(found.covariance, FIT.covariance, rtol=1e-10)
    np.testing.assert_allclose(found.mean, FIT.mean, rtol=1e-10, atol=1e-12)
    assert found.n == 50


def test_thinned_features_are_evenly_spaced():
    np.testing.assert_array_equal(thinned(np.arange(10)[:, None], 4)[:, 0], [0, 2, 5, 7])
    np.testing.assert_array_equal(thinned(FEATURES, 99), FEATURES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"block_mean": np.zeros(3)}, r"holds \['block_mean'\], no statistics of features"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu \(3,\) and sigma \(4, 4\) are no mean"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "mu or sigma are not finite"),
        ({"pool_3": np.zeros(4)}, r"pool_3 is \(4,\) and not \[n, f\]"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"arr_0 is float64 \(2, 4, 4, 3\) and not uint8"),
    ],
)
def test_files_that_are_no_reference_say_what_they_hold(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "other.npz", **arrays))


def test_a_missing_file_and_other_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No reference statistics at .*none.npz \(config.eval.reference\)"):
        load(tmp_path / "none.npz")
    assert not is_feature_file(tmp_path / "none.npz")
    assert not is_feature_file(write(tmp_path / "blocks.npz", name="x", block_mean=np.zeros(2)))
    (tmp_path / "text.npz").write_text("hello")
    assert not is_feature_file(tmp_path / "text.npz")
