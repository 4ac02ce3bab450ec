"""--mode=evaluate measures one finished run, and nothing else."""

import json

import numpy as np
import pytest

import run_lib
from builders import judge as judges
from builders.detector import Detector
from configs import base as base_config
from metrics import reference
from metrics.frechet import frechet_distance, moments
from metrics.paired import rmse
from modes import evaluate, paired_run
from modes.request import Request
from reports.images import write_png
from reports.outputs import RunFolder, read_run

RNG = np.random.default_rng(0)
SETTINGS = {"config": {"sampling": {"method": "pc"}}, "seed": 3, "precision": "float32", "weights": "abcdef" * 4}


def photographs(n, seed=0):
    """Smooth random images of 8 px."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(size=(n, 4, 4, 1)).repeat(2, 1).repeat(2, 2)
    return np.clip(255 * (0.8 * coarse + 0.1 * rng.uniform(size=(n, 8, 8, 1))), 0, 255).astype(np.uint8)


def write_run(folder, images, settings=SETTINGS):
    with RunFolder(folder, settings, {"command": "test"}) as run:
        for index, image in enumerate(images):
            run.write(index, image)
        cost = {"seconds": {"compile": 1.0, "steady": 2.5}, "peak_memory": 7000, "grid": [50.0, 0.123456, 0.0]}
        run.finish({"calls": 40, "gradient_calls": 0} | cost)


def config(**changes):
    made = base_config.get_config()
    made.data.update(image_size=8, num_channels=1, **changes)
    return made


@pytest.fixture
def source(tmp_path):
    (tmp_path / "photographs").mkdir()
    for index, image in enumerate(photographs(40, seed=1)):
        write_png(tmp_path / "photographs" / f"{index:03}.png", image)
    return str(tmp_path / "photographs")


def row_of(workdir):
    return json.loads((workdir / "results.jsonl").read_text().splitlines()[-1])


def test_the_row_is_what_the_metrics_say_with_its_circumstances(tmp_path, source):
    images = photographs(30)
    write_run(tmp_path / "eval", images)
    run_lib.MODES["evaluate"](Request(config(source=source, holdout=4), tmp_path))
    row = row_of(tmp_path)
    training = np.stack([image for index, image in enumerate(photographs(40, seed=1)) if index % 4])
    expected = reference.scores(images, reference.compute_reference(training, "photographs"))
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert (row["n"], row["seed"], row["checkpoint"], row["calls"]) == (30, 3, "abcdefabcdef", 40)
    assert (row["compile_seconds"], row["steady_seconds"], row["peak_memory"]) == (1.0, 2.5, 7000)
    assert (row["grid"], row["steps"]) == ("50,0.12346,0", 2)
    assert 0 <= row["block_precision"] <= 1 and 0 <= row["memorisation_copies"] <= 1
    assert row["sliced_wasserstein_8"] > 0
    assert (tmp_path / "results.csv").read_text().startswith("n,")


def test_the_cost_of_all_images_is_told_though_a_killed_session_left_no_time():
    sessions = [
        {"finished": False},
        {"images_written": 6, "seconds": {"compile": 2.0, "steady": 3.0}, "peak_memory": 50},
        {"images_written": 2, "seconds": {"compile": 0.0, "steady": 1.0}, "peak_memory": 60},
    ]
    found = evaluate.cost(sessions, 16)  # eight of them by the killed one
    assert found == {"compile_seconds": 2.0, "steady_seconds": 8.0, "peak_memory": 60}
    unknown = evaluate.cost([{"images_written": 0, "seconds": {"compile": 0.0, "steady": 0.1}, "peak_memory": None}], 4)
    assert unknown == {"compile_seconds": 0.0, "steady_seconds": None, "peak_memory": None}


def test_copies_of_training_images_are_told(tmp_path, source):
    training = photographs(40, seed=1)[1:20]
    write_run(tmp_path / "eval", training)
    run_lib.MODES["evaluate"](Request(config(source=source, holdout=10), tmp_path))
    assert row_of(tmp_path)["memorisation_closer"] > 0.9


def test_statistics_alone_are_enough(tmp_path):
    reference.save_reference(tmp_path / "r.npz", reference.compute_reference(photographs(40, seed=1), "forty"))
    write_run(tmp_path / "eval", photographs(30))
    made = config()
    made.eval.reference = str(tmp_path / "r.npz")
    run_lib.MODES["evaluate"](Request(made, tmp_path))
    assert row_of(tmp_path)["reference"] == "forty" and "block_recall" not in row_of(tmp_path)


def test_nothing_to_compare_with_is_an_error(tmp_path):
    write_run(tmp_path / "eval", photographs(30))
    with pytest.raises(ValueError, match="--config.eval.reference .* or --config.data.source"):
        run_lib.MODES["evaluate"](Request(config(), tmp_path))


def test_too_few_images_for_the_covariance_are_refused(tmp_path, source):
    write_run(tmp_path / "eval", photographs(4))
    with pytest.raises(ValueError, match="too few for a covariance"):
        run_lib.MODES["evaluate"](Request(config(source=source), tmp_path))


def test_a_reference_of_another_size_is_refused(tmp_path):
    other = photographs(40).repeat(2, 1).repeat(2, 2)
    reference.save_reference(tmp_path / "r.npz", reference.compute_reference(other, "large"))
    write_run(tmp_path / "eval", photographs(30))
    made = config()
    made.eval.reference = str(tmp_path / "r.npz")
    with pytest.raises(ValueError, match=r"\(8, 8, 1\) and the reference 'large' is \(16, 16, 1\)"):
        run_lib.MODES["evaluate"](Request(made, tmp_path))


def test_no_run_an_unfinished_run_and_a_mixed_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no run in .*empty"):
        read_run(tmp_path / "empty")
    with RunFolder(tmp_path / "cut", SETTINGS) as run:
        run.write(0, photographs(1)[0])
    with pytest.raises(ValueError, match="not finished"):
        read_run(tmp_path / "cut")
    write_run(tmp_path / "mixed", photographs(3))
    write_png(tmp_path / "mixed" / "image_2.png", np.zeros((16, 16, 1), np.uint8))
    with pytest.raises(ValueError, match="image_2.png is .* two runs are mixed"):
        read_run(tmp_path / "mixed")
    write_run(tmp_path / "more", photographs(3))
    write_png(tmp_path / "more" / "image_7.png", photographs(1)[0])
    with pytest.raises(ValueError, match="4 images are there and its record speaks of 3"):
        read_run(tmp_path / "more")


def test_the_distance_to_a_long_run_is_taken_over_common_images(tmp_path, monkeypatch):
    images, long = photographs(7), photographs(7, seed=2)
    write_run(tmp_path / "eval", images[:6])
    with RunFolder(tmp_path / "long", SETTINGS, {"command": "test"}) as folder:
        for index in (6, 5, 2):
            folder.write(index, long[index])
        folder.finish({"calls": 400})
    made = config()
    made.eval.paired_with = str(tmp_path / "long")
    made.loss.weights = "alexnet.pth,alex.pth"

    class Brightness:
        kind = "alex"

        def __call__(self, a, b):
            return abs(a.mean((1, 2, 3)) - b.mean((1, 2, 3)))

    asked = []
    monkeypatch.setattr(paired_run, "load_perceptual", lambda *given: asked.append(given) or Brightness())
    run_lib.MODES["evaluate"](Request(made, tmp_path))
    row = row_of(tmp_path)
    error = rmse(images[[2, 5]], long[[2, 5]])
    assert (row["paired_n"], row["paired_calls"], asked) == (2, 400, [("alexnet.pth,alex.pth", (0.0, 1.0))])
    assert row["paired_rmse"] == pytest.approx(error.mean())
    assert row["paired_psnr"] == pytest.approx(-10 * np.log10((error**2).mean()))
    bright = [abs(images[i].mean() - long[i].mean()) / 255 for i in (2, 5)]
    assert row["paired_lpips_alex"] == pytest.approx(np.mean(bright), rel=1e-4)
    assert "paired_ssim" not in row and "block_frechet" not in row  # 8 px; and no reference was named


def test_runs_from_other_noise_are_not_paired(tmp_path):
    write_run(tmp_path / "eval", photographs(3))
    write_run(tmp_path / "seed", photographs(3), SETTINGS | {"seed": 4})
    made = config()
    made.eval.paired_with = str(tmp_path / "seed")
    with pytest.raises(ValueError, match="has the seed 4 and .*eval 3: .* did not begin at the same noise"):
        run_lib.MODES["evaluate"](Request(made, tmp_path))
    with RunFolder(tmp_path / "far", SETTINGS, {"command": "test"}) as folder:
        folder.write(9, photographs(1)[0])
        folder.finish({"calls": 400})
    made.eval.paired_with = str(tmp_path / "far")
    with pytest.raises(ValueError, match="have no image in common; see --seeds"):
        run_lib.MODES["evaluate"](Request(made, tmp_path))


class Eyes(Detector):
    """Three colours and a corner in place of Inception's features."""

    def __call__(self, images, advance=lambda _: None):
        features = np.stack([images[:, 0, 0, 0], images[:, 7, 7, 0], images.mean(axis=(1, 2, 3))], axis=1) / 255
        return features, features


@pytest.fixture
def eyes(monkeypatch):
    monkeypatch.setattr(judges, "FEATURES", 3)
    made = Eyes("pytorch_fid", "pytorch_fid", None, "6726825d" * 8)
    monkeypatch.setattr(judges, "load_detector", lambda *_: made)
    return made


def test_a_detectors_figures_stand_beside_the_others(tmp_path, source, eyes):
    write_run(tmp_path / "eval", photographs(30))
    made = config(source=source)
    made.eval.update(detector="w.pth", seed_ranges=3)
    run_lib.MODES["evaluate"](Request(made, tmp_path))
    row = row_of(tmp_path)
    assert row["block_frechet"] > 0 and row["seed_ranges"] == "0-9,10-19,20-29"
    assert row["fid@10"] == pytest.approx(np.mean([row[f"fid@10_range{i}"] for i in range(3)]))
    assert row["detector_sha256"] == "6726825d6726825d" and row["detector_reference"] == "photographs"
    assert list(tmp_path.glob("features_*_pytorch_fid_6726825d_pytorch_fid.npz"))


def test_published_moments_are_enough_for_a_detector_and_mean_nothing_without_one(tmp_path, eyes):
    fit = moments(eyes(photographs(40, seed=1))[0])
    np.savez(tmp_path / "edm.npz", mu=fit.mean, sigma=fit.covariance)
    write_run(tmp_path / "eval", photographs(30))
    made = config()
    made.eval.update(detector="w.pth", reference=str(tmp_path / "edm.npz"))
    run_lib.MODES["evaluate"](Request(made, tmp_path))
    row = row_of(tmp_path)
    assert row["fid@30"] == pytest.approx(frechet_distance(moments(eyes(photographs(30))[0]), fit))
    assert "block_frechet" not in row and row["detector_reference"] == "edm"
    made.eval.detector = ""
    with pytest.raises(ValueError, match="holds statistics of Inception features.*--config.eval.detector=FILE"):
        run_lib.MODES["evaluate"](Request(made, tmp_path))


def test_few_images_are_judged_by_what_few_images_allow(tmp_path, source, eyes):
    write_run(tmp_path / "eval", photographs(3))
    made = config(source=source)
    made.eval.update(detector="w.pth", detector_scores="kid")
    run_lib.MODES["evaluate"](Request(made, tmp_path))
    assert "kid" in row_of(tmp_path) and "block_frechet" not in row_of(tmp_path)
