"""What is said of a run says how it was found: n, reference, detector; and what cannot be compared is refused."""

import dataclasses

import numpy as np
import pytest

from builders import judge as judges
from builders.detector import Detector
from builders.judge import open_judge, scores
from configs import base as base_config
from metrics import feature_reference
from metrics.feature_reference import FeatureReference
from metrics.frechet import frechet_distance, moments
from metrics.inception_score import inception_score
from metrics.kernel_distance import kernel_distance
from metrics.precision_recall import precision_recall

F = 4  # features, in place of 2048


@dataclasses.dataclass(frozen=True)
class Eyes(Detector):
    """Means of the quarters of an image in place of Inception's features."""

    def __call__(self, images, advance=lambda _: None):
        unit = images / 255
        features = np.stack([unit[:, i::2, j::2].mean(axis=(1, 2, 3)) for i in range(2) for j in range(2)], axis=1)
        advance(len(images))
        return features.astype(np.float32), 20 * features[:, :3]


EYES = Eyes("pytorch_fid", "pytorch_fid", None, "6726825d" + "e" * 56)
OTHERS = Eyes("torchvision", "pytorch_fid", None, "0cc3c7bd" + "f" * 56)


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 6, 6, 3)).astype(np.uint8)


REAL = pictures(60, seed=1)


@pytest.fixture(autouse=True)
def eyes(monkeypatch):
    monkeypatch.setattr(judges, "FEATURES", F)
    monkeypatch.setattr(judges, "load_detector", lambda *_: EYES)


def config(**settings):
    made = base_config.get_config()
    made.eval.update(detector="w.pth", inception_splits=3, **settings)
    made.data.source = "photographs.zip"
    return made


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_the_row_is_what_the_metrics_say_of_the_features_with_its_circumstances(tmp_path):
    judge, images = open_judge(config(), tmp_path, REAL), pictures(30)
    row = scores(judge, images, range(30))
    ours, theirs = EYES(images), EYES(REAL)[0]
    assert row["fid@30"] == pytest.approx(frechet_distance(moments(ours[0]), moments(theirs)), rel=1e-10)
    assert (row["kid"], row["kid_low"], row["kid_high"]) == pytest.approx(kernel_distance(ours[0], theirs))
    assert (row["inception_score"], row["inception_score_std"]) == pytest.approx(inception_score(ours[1], 3))
    assert row["inception_pr_n"] == 30
    expected = precision_recall(ours[0], theirs[::2])  # at equal n
    assert (row["inception_precision"], row["inception_recall"]) == expected
    assert (row["detector"], row["detector_sha256"], row["detector_n"]) == ("pytorch_fid", "6726825deeeeeeee", 30)
    assert (row["detector_reference"], row["detector_reference_n"]) == ("photographs", 60)
    assert row["detector_reference_sha256"] == feature_reference.images_hash(REAL)[:16]
    assert row["detector_input"] == "pytorch_fid"


def test_fid_needs_ten_thousand_images_and_torchvisions_network_has_another_name():
    judge = judges.Judge(EYES, None, (), 1, 1)
    assert [judges.frechet_name(judge, n) for n in (9_999, 10_000, 50_000)] == ["fid@9999", "fid", "fid"]
    judge = judge._replace(detector=OTHERS)
    assert [judge.prefix + judges.frechet_name(judge, n) for n in (50, 10_000)] == [
        "torchvision_frechet@50",
        "torchvision_frechet",
    ]


def test_torchvisions_figures_all_have_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_detector", lambda *_: OTHERS)
    row = scores(open_judge(config(), tmp_path, REAL), pictures(30), range(30))
    figures = {key for key in row if not key.startswith(("detector", "torchvision_"))}
    assert not figures and row["torchvision_frechet@30"] >= 0


def test_weights_that_are_not_the_published_ones_are_named_so(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "load_detector", lambda *_: dataclasses.replace(EYES, sha256="0" * 64))
    row = scores(open_judge(config(detector_scores="is"), tmp_path, None), pictures(9), range(9))
    assert row["detector"] == "pytorch_fid with other weights"


def test_what_the_detector_said_of_a_data_set_is_kept_and_read(tmp_path, monkeypatch):
    first = scores(open_judge(config(), tmp_path, REAL), pictures(30), range(30))
    (kept,) = tmp_path.glob("features_*.npz")
    calls = []
    monkeypatch.setattr(Eyes, "__call__", lambda self, images, advance=None: calls.append(len(images)))
    again = open_judge(config(), tmp_path, REAL)
    assert not calls and again.reference.moments.n == 60
    with pytest.raises(TypeError):  # other images are looked at
        open_judge(config(), tmp_path, REAL[::-1])
    assert calls == [60]
    monkeypatch.undo()
    monkeypatch.setattr(judges, "FEATURES", F)
    monkeypatch.setattr(judges, "load_detector", lambda *_: EYES)
    by_file = scores(open_judge(config(reference=str(kept)), tmp_path, None), pictures(30), range(30))
    assert by_file == first


def test_three_ranges_of_seeds_have_figures_of_their_own_and_a_spread(tmp_path):
    judge, images = open_judge(config(seed_ranges=3), tmp_path, REAL), pictures(30)
    row = scores(judge, images, [*range(100, 110), *range(200, 220)])
    parts = [EYES(images[start : start + 10])[0] for start in (0, 10, 20)]
    each = [frechet_distance(moments(part), moments(EYES(REAL)[0])) for part in parts]
    assert [row[f"fid@10_range{i}"] for i in range(3)] == pytest.approx(each, rel=1e-10)
    assert row["fid@10"] == pytest.approx(np.mean(each))
    assert row["fid@10_spread"] == pytest.approx(np.std(each, ddof=1))
    assert row["seed_ranges"] == "100-109,200-209,210-219" and row["detector_n"] == 10
    assert "kid_low" not in row and "kid_spread" in row


def test_unequal_ranges_are_refused(tmp_path):
    judge = open_judge(config(seed_ranges=3), tmp_path, REAL)
    with pytest.raises(ValueError, match=r"seed_ranges=3: 31 images do not make equal ranges; draw 33"):
        scores(judge, pictures(31), range(31))
    with pytest.raises(ValueError, match="seed_ranges=0 must be at least 1"):
        open_judge(config(seed_ranges=0), tmp_path, REAL)


def test_moments_alone_give_the_distances_that_they_can(tmp_path):
    fit = moments(EYES(REAL)[0])
    file = write(tmp_path / "cifar10.npz", mu=fit.mean, sigma=fit.covariance)
    row = scores(open_judge(config(reference=file), tmp_path, None), pictures(30), range(30))
    assert row["fid@30"] == pytest.approx(frechet_distance(moments(EYES(pictures(30))[0]), fit))
    assert "kid" not in row and row["detector_reference_n"] is None
    assert row["detector_reference_layout"] == "moments"
    with pytest.raises(ValueError, match=r"asks for 'kid', .* holds moments alone; set config.data.source"):
        open_judge(config(reference=file, detector_scores="kid"), tmp_path, None)


def test_images_of_a_reference_batch_are_shown_to_the_detector(tmp_path):
    fit = moments(EYES(REAL)[0])._replace(mean=np.ones(F))  # of more images than the file holds
    adm = dict(mu=fit.mean, sigma=fit.covariance, mu_s=np.zeros(2), sigma_s=np.eye(2), arr_0=REAL)
    row = scores(
        open_judge(config(reference=write(tmp_path / "adm.npz", **adm)), tmp_path, None), pictures(30), [0, 29]
    )
    ours = EYES(pictures(30))[0]
    assert row["fid@30"] == pytest.approx(frechet_distance(moments(ours), fit))
    assert row["kid"] == pytest.approx(kernel_distance(ours, EYES(REAL)[0]).value)
    batch = open_judge(config(reference=write(tmp_path / "batch.npz", arr_0=REAL)), tmp_path, None)
    assert batch.reference.moments.n == 60 and batch.reference.layout == "images"


def test_references_of_other_detectors_are_refused(tmp_path, monkeypatch):
    wide = write(tmp_path / "dino.npz", mu=np.zeros(7), sigma=np.eye(7))
    with pytest.raises(
        ValueError, match="dino.npz holds moments of 7 features, Inception's are 4: .* another detector"
    ):
        open_judge(config(reference=wide), tmp_path, None)
    fit = moments(EYES(REAL)[0])
    graph = write(tmp_path / "edm.npz", mu=fit.mean, sigma=fit.covariance)
    made = FeatureReference(
        "r", "own", "a", fit, EYES(REAL)[0], None, (6, 6, 3), "pytorch_fid", "0" * 64, "pytorch_fid"
    )
    with open(tmp_path / "own.npz", "wb") as file:
        feature_reference.save(file, made)
    with pytest.raises(ValueError, match=r"made with weights '000000000000', and this detector has '6726825deeee'"):
        open_judge(config(reference=str(tmp_path / "own.npz")), tmp_path, None)
    with open(tmp_path / "own.npz", "wb") as file:
        feature_reference.save(file, made._replace(detector_sha256=EYES.sha256, detector_input="tensorflow"))
    with pytest.raises(
        ValueError, match=r"config.eval.detector_input 'tensorflow', and this detector has 'pytorch_fid'"
    ):
        open_judge(config(reference=str(tmp_path / "own.npz")), tmp_path, None)
    monkeypatch.setattr(judges, "load_detector", lambda *_: OTHERS)
    with pytest.raises(ValueError, match=r"made with the network of 'pytorch_fid', and .* is 'torchvision'"):
        open_judge(config(reference=graph), tmp_path, None)


def test_a_reference_of_another_resolution_is_refused(tmp_path):
    fit = moments(EYES(REAL)[0])
    by_name = write(tmp_path / "ffhq-64x64.npz", mu=fit.mean, sigma=fit.covariance)
    for judge in (open_judge(config(reference=by_name), tmp_path, None), open_judge(config(), tmp_path, REAL[:, :5])):
        with pytest.raises(ValueError, match=r"Images are \(6, 6, 3\) and those of the reference '.*' are \((64|5), "):
            scores(judge, pictures(30), range(30))


def test_too_few_images_for_a_covariance_are_refused_before_the_network_is_called(tmp_path, monkeypatch):
    judge = open_judge(config(), tmp_path, REAL)
    monkeypatch.setattr(Eyes, "__call__", None)
    with pytest.raises(ValueError, match=r"4 images are too few for a covariance of 4 features: its rank is at most 3"):
        scores(judge, pictures(4), range(4))
    with pytest.raises(ValueError, match=r"4 images a range are too few .*--config.eval.detector_scores=kid,is,pr"):
        scores(judge._replace(ranges=3), pictures(12), range(12))
    with pytest.raises(ValueError, match="4 reference images are too few for a covariance of 4 features"):
        open_judge(config(), tmp_path, REAL[:4])
    with pytest.raises(ValueError, match="inception_splits=3 is more than the 2 images"):
        scores(judge._replace(wanted=("is",)), pictures(2), range(2))


def test_few_images_still_have_a_kernel_distance(tmp_path):
    row = scores(open_judge(config(detector_scores="kid, is"), tmp_path, REAL[:4]), pictures(4), range(4))
    assert row["kid"] == pytest.approx(kernel_distance(EYES(pictures(4))[0], EYES(REAL[:4])[0]).value)
    assert not any("fid" in key for key in row if not key.startswith("detector")) and "inception_precision" not in row


def test_no_detector_no_judge_and_its_statistics_without_it_are_refused(tmp_path):
    plain = base_config.get_config()
    assert open_judge(plain, tmp_path, None) is None
    plain.eval.reference = write(tmp_path / "edm.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"holds statistics of Inception features.*--config.eval.detector=FILE"):
        open_judge(plain, tmp_path, None)


def test_nothing_to_compare_with_and_unknown_scores_are_refused(tmp_path):
    with pytest.raises(ValueError, match="The detector has no real images to compare with"):
        open_judge(config(), tmp_path, None)
    with pytest.raises(ValueError, match=r"detector_scores='fid,swd': \['swd'\] unknown; choose from"):
        open_judge(config(detector_scores="fid,swd"), tmp_path, REAL)


def test_references_of_the_graph_ask_for_its_resizing(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(judges.logging, "warning", lambda text, *values: said.append(text % values))
    file = write(tmp_path / "cifar10_stats.npz", pool_3=EYES(REAL)[0])
    open_judge(config(reference=file), tmp_path, None)
    assert len(said) == 1 and "--config.eval.detector_input=tensorflow" in said[0]
