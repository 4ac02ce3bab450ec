"""--mode=sweep: every point once, whatever interrupts it; what cannot be read is said before anything is drawn."""

import copy
import json
import types

import numpy as np
import pytest

import run_lib
from builders.config import apply_overrides
from configs import base as base_config
from metrics import reference
from modes import repeat, sample, sweep
from modes.request import Request
from modes.sweep import parse_sweep, point_name, shard_of
from reports.outputs import RunFolder

CONFIG = base_config.get_config()


def test_the_points_are_the_product_in_order_with_the_types_of_their_keys():
    points = parse_sweep(["method=pc,pds", "speed_up=10,20", "sampling.noise_removal=True"], CONFIG)
    assert len(points) == 4
    assert points[1] == {"sampling.method": "pc", "sampling.speed_up": 20.0, "sampling.noise_removal": True}
    assert isinstance(points[1]["sampling.speed_up"], float)
    assert point_name(points[1]) == "method=pc,speed_up=20.0,noise_removal=True"


@pytest.mark.parametrize("option", ["speed_up", "speed_up=", "speedup=3", "sampling.nothing=1", "steps=few"])
def test_what_is_no_option_is_refused(option):
    with pytest.raises(ValueError, match="--sweep"):
        parse_sweep([option], CONFIG)


def test_shards_share_the_points_without_overlap():
    points = parse_sweep(["steps=1,2,3,4,5"], CONFIG)
    parts = [shard_of(points, f"{k}/2") for k in (0, 1)]
    assert sorted(point["sampling.num_steps"] for part in parts for point in part) == [1, 2, 3, 4, 5]
    for shard in ("2/2", "1", "a/b"):
        with pytest.raises(ValueError, match="--shard"):
            shard_of(points, shard)


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """A sweep whose images come from a generator, so that only the sweep is tested."""
    photographs = np.random.default_rng(9).integers(0, 256, (40, 8, 8, 1), np.uint8)
    reference.save_reference(tmp_path / "r.npz", reference.compute_reference(photographs, "noise"))
    config = base_config.get_config()
    config.data.update(image_size=8, num_channels=1)
    config.eval.reference = str(tmp_path / "r.npz")
    drawn = []

    def draw(request):
        steps = request.overrides["sampling.num_steps"]
        if steps == 13:
            raise ValueError("13 steps are refused")
        if steps == 14:
            raise FileNotFoundError("there is no schedule of 14 steps")
        if steps == 28:
            raise OSError(28, "No space left on device")
        drawn.append(steps)
        asked = copy.deepcopy(config)
        apply_overrides(asked, request.overrides)
        settings = {"config": {"sampling": {"method": "pc"}}, "seed": 0, "weights": "0" * 12}
        with RunFolder(tmp_path / "W" / request.overrides["eval.eval_folder"], settings, {}) as folder:
            for index in range(10):
                pixels = np.random.default_rng([steps, index]).integers(0, 256, (8, 8, 1), np.uint8)
                folder.write(index, pixels, {"config": repeat.settings_text(asked)})
            cost = {"calls": steps, "seconds": {"compile": 0.5, "steady": 1.0}, "peak_memory": 4000}
            folder.finish(cost)

    monkeypatch.setattr(sample, "run", draw)
    monkeypatch.setattr(
        sweep, "open_model", lambda request: types.SimpleNamespace(config=config, weights_hash="0" * 64)
    )

    def make(*options, **changes):
        return Request(config, tmp_path / "W", sweep=options, overrides={"eval.num_samples": 10}, **changes), drawn

    return make


def table(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def test_a_sweep_that_died_ends_with_the_table_of_one_that_did_not(request_for, tmp_path, monkeypatch):
    request, drawn = request_for("steps=3,4,5")
    measure = sweep.evaluate.measure

    def dies(folder, *rest):
        if "num_steps=4" in str(folder):
            raise KeyboardInterrupt
        return measure(folder, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep.evaluate, "measure", dies)
        run_lib.MODES["sweep"](request)
    run_lib.MODES["sweep"](request)
    rows = table(tmp_path / "W")
    assert [row["num_steps"] for row in rows] == [3, 4, 5] and [row["calls"] for row in rows] == [3, 4, 5]
    assert drawn == [3, 4, 4, 5]  # the unfinished point was opened again; its images would be kept
    run_lib.MODES["sweep"](request)
    assert table(tmp_path / "W") == rows and len(drawn) == 4


def test_a_refused_point_is_written_down_and_the_others_are_drawn(request_for, tmp_path):
    request, drawn = request_for("steps=3,13,4")
    run_lib.MODES["sweep"](request)
    assert drawn == [3, 4] and len(table(tmp_path / "W")) == 2
    failure = json.loads((tmp_path / "W" / "failures.jsonl").read_text())
    assert failure == {"point": "num_steps=13", "error": "13 steps are refused"}


def test_a_reason_is_written_down_once_and_a_full_disk_ends_the_sweep(request_for, tmp_path):
    request, drawn = request_for("steps=13,14,3")
    run_lib.MODES["sweep"](request)
    run_lib.MODES["sweep"](request)
    failures = [json.loads(line) for line in (tmp_path / "W" / "failures.jsonl").read_text().splitlines()]
    assert [row["error"] for row in failures] == ["13 steps are refused", "there is no schedule of 14 steps"]
    assert drawn == [3]
    with pytest.raises(OSError, match="No space left"):
        run_lib.MODES["sweep"](request._replace(sweep=("steps=28,4",)))
    assert drawn == [3]


def test_a_row_says_what_it_took_and_under_which_settings(request_for, tmp_path):
    run_lib.MODES["sweep"](request_for("steps=3")[0])
    (row,) = table(tmp_path / "W")
    assert (row["compile_seconds"], row["steady_seconds"], row["peak_memory"]) == (0.5, 1.0, 4000)
    assert row["block_frechet_low"] <= row["block_frechet"] <= row["block_frechet_high"]
    assert json.loads(row["config"])["sampling"] == {"num_steps": 3} and "--steps=3" in row["draw"]
    assert set(row) == set((tmp_path / "W" / "results.csv").read_text().splitlines()[0].split(","))


def test_rows_of_another_sweep_under_equal_names_are_refused(request_for, tmp_path, monkeypatch):
    request, drawn = request_for("steps=3")
    run_lib.MODES["sweep"](request)
    opened = types.SimpleNamespace(config=request.config, weights_hash="0" * 64)
    monkeypatch.setattr(sweep, "open_model", lambda request: opened)
    run_lib.MODES["sweep"](request)
    with pytest.raises(
        ValueError, match=r"'num_steps=3' .* made with n 10, this sweep asks for 12: .* another --workdir"
    ):
        run_lib.MODES["sweep"](request._replace(overrides={"eval.num_samples": 12}))
    opened.weights_hash = "1" * 64
    with pytest.raises(ValueError, match="made with checkpoint 000000000000, this sweep asks for 111111111111"):
        run_lib.MODES["sweep"](request)
    opened.weights_hash, opened.config.sampling.snr = "0" * 64, 0.3
    with pytest.raises(ValueError, match=r"made with config.sampling.snr the default, this sweep asks for 0.3"):
        run_lib.MODES["sweep"](request)
    assert len(drawn) == 1


def test_a_reference_of_another_size_is_refused_before_the_first_image(request_for):
    request, drawn = request_for("steps=3")
    request.config.data.image_size = 16
    with pytest.raises(ValueError, match=r"Images are \(16, 16, 1\) and the reference 'noise' is \(8, 8, 1\)"):
        run_lib.MODES["sweep"](request)
    assert not drawn


def test_a_dry_run_draws_nothing(request_for, tmp_path):
    request, drawn = request_for("steps=3,4", dry_run=True)
    run_lib.MODES["sweep"](request)
    assert not drawn and not (tmp_path / "W" / "results.jsonl").exists()


def test_too_few_images_are_refused_before_the_first_is_drawn(request_for):
    request, drawn = request_for("steps=3")
    with pytest.raises(ValueError, match=r"too few for a covariance .*--num_samples"):
        run_lib.MODES["sweep"](request._replace(overrides={"eval.num_samples": 4}))
    assert not drawn
