"""A run can be killed, resumed, run out of disk and be mistaken for another; no image is lost, repeated or mixed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reports import atomic
from reports.images import read_png
from reports.outputs import RunFolder, write_shards

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)
SHAPE = (6, 6, 3)
SETTINGS = {
    "config": {"sampling": {"alpha": 5.0, "ch_mult": (1, 2)}, "seed": 42},
    "weights": "ab12",
    "levels": np.int64(7),
}


def draw(folder, indices):
    with RunFolder(folder, SETTINGS, {"command": "main.py"}) as run:
        todo = run.missing(indices, SHAPE)
        for index in todo:
            run.write(index, IMAGES[index], {"seed": 42, "index": index})
        run.finish({"calls": 20, "seconds": {"compile": 1.5, "steady": 3.0}}, caption="nine")
    return todo


def test_a_run_leaves_images_shards_grid_and_record(tmp_path):
    assert draw(tmp_path / "eval", range(9)) == list(range(9))
    for index in range(9):
        image, text = read_png(tmp_path / "eval" / f"image_{index}.png")
        np.testing.assert_array_equal(image, IMAGES[index])
        assert text == {"seed": "42", "index": str(index)}
    with np.load(tmp_path / "eval" / "samples_0.npz") as shard:
        np.testing.assert_array_equal(shard["arr_0"], IMAGES)
        assert shard["arr_0"].dtype == np.uint8 and shard["index"].tolist() == list(range(9))
    assert read_png(tmp_path / "eval" / "grid.png").image.shape[1] > 3 * 96
    record = json.loads((tmp_path / "eval" / "run.json").read_text())
    assert record["settings"]["config"] == {"sampling": {"alpha": 5.0, "ch_mult": [1, 2]}, "seed": 42}
    assert record["images"] == 9 and len(record["sessions"]) == 1
    session = record["sessions"][0]
    assert session["command"] == "main.py" and session["calls"] == 20 and session["seconds"]["steady"] == 3.0
    assert session["images_written"] == 9 and session["finished"] is True
    expected = {f"image_{index}.png" for index in range(9)} | {"grid.png", "run.json", "samples_0.npz"}
    assert set(os.listdir(tmp_path / "eval")) == expected


def test_a_second_run_draws_only_what_is_missing_or_damaged(tmp_path):
    assert draw(tmp_path, [0, 1, 2, 5]) == [0, 1, 2, 5]
    assert draw(tmp_path, range(6)) == [3, 4]
    whole = (tmp_path / "image_1.png").read_bytes()
    (tmp_path / "image_1.png").write_bytes(whole[:-20])
    (tmp_path / "image_4.png").unlink()
    assert draw(tmp_path, range(6)) == [1, 4]
    assert (tmp_path / "image_1.png").read_bytes() == whole
    record = json.loads((tmp_path / "run.json").read_text())
    assert [session["images_written"] for session in record["sessions"]] == [4, 2, 2]
    with np.load(tmp_path / "samples_0.npz") as shard:
        np.testing.assert_array_equal(shard["arr_0"], IMAGES[:6])


def test_images_of_another_size_count_as_missing(tmp_path):
    draw(tmp_path, range(2))
    with RunFolder(tmp_path, SETTINGS) as run:
        assert run.missing([0, 1], (6, 6, 1)) == [0, 1]


def test_other_settings_are_refused_by_name(tmp_path):
    draw(tmp_path, range(2))
    other = {"config": {"sampling": {"alpha": 2.0, "ch_mult": [1, 2]}, "seed": 42, "ema": True, "mask": None}}
    other["weights"] = "ab12"
    with pytest.raises(ValueError, match="other settings") as caught:
        RunFolder(tmp_path, other)
    message = str(caught.value)
    assert "config.sampling.alpha is 5.0 there and 2.0 here" in message
    assert "config.ema is absent there and True here" in message
    assert "config.mask is absent there and None here" in message
    assert "levels is 7 there and absent here" in message
    assert "weights" not in message and "ch_mult" not in message
    assert "--eval_folder, or delete" in message
    assert len(json.loads((tmp_path / "run.json").read_text())["sessions"]) == 1


def test_images_without_a_record_are_not_adopted(tmp_path):
    (tmp_path / "image_0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images \(image_0.png\) but no run.json.*--eval_folder"):
        RunFolder(tmp_path, SETTINGS)


def test_a_record_that_is_none_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="run.json is no record of a run"):
        RunFolder(tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"output folder .*eval cannot be made .*--workdir"):
        RunFolder(tmp_path / "file" / "eval", SETTINGS)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, monkeypatch):
    replace, room = os.replace, ["run.json", "image_0.png", "image_1.png"]

    def replace_while_there_is_room(source, target):
        if Path(target).name not in room:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", replace_while_there_is_room)
        with pytest.raises(OSError, match=r"The disk is full: .*image_2\.png"):
            draw(tmp_path, range(5))
    assert sorted(os.listdir(tmp_path)) == ["image_0.png", "image_1.png", "run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["sessions"][0]["finished"] is False
    assert draw(tmp_path, range(5)) == [2, 3, 4]


def test_a_failed_write_is_raised_even_if_nobody_asks(tmp_path):
    with pytest.raises(TypeError):
        with RunFolder(tmp_path, SETTINGS) as run:
            run.write(0, np.zeros((6, 6, 5), np.uint8))


def test_many_images_wait_for_the_writers_in_order(tmp_path):
    with RunFolder(tmp_path, SETTINGS) as run:
        for index in range(300):
            run.write(index, IMAGES[index % 9])
        run.flush()
        assert run.indices() == list(range(300))
    np.testing.assert_array_equal(read_png(tmp_path / "image_298.png").image, IMAGES[298 % 9])


CHILD = """
import sys
import numpy as np
from reports.outputs import RunFolder
with RunFolder(sys.argv[1], {"seed": 1}) as run:
    for index in range(100_000):
        run.write(index, np.full((64, 64, 3), index % 256, np.uint8))
        if index == 200:
            print("on the way", flush=True)
"""


def test_a_killed_run_leaves_whole_images_only(tmp_path):
    root = str(Path(__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    with RunFolder(tmp_path, {"seed": 1}) as run:
        found = run.indices()
        present = {int(path.stem[6:]) for path in tmp_path.glob("image_*.png")}
        assert set(found) == present and len(found) > 100
        assert set(run.missing(range(400), (64, 64, 3))) == set(range(400)) - present
    assert (read_png(tmp_path / "image_77.png").image == 77).all()


def test_shards_split_by_size_and_stale_ones_go(tmp_path):
    draw(tmp_path, range(9))
    paths = write_shards(tmp_path, range(9), shard_bytes=4 * 108)
    assert [path.name for path in paths] == ["samples_0.npz", "samples_1.npz", "samples_2.npz"]
    parts = [np.load(path)["arr_0"] for path in paths]
    assert [len(part) for part in parts] == [4, 4, 1]
    np.testing.assert_array_equal(np.concatenate(parts), IMAGES)
    assert write_shards(tmp_path, [3]) == paths[:1] and not paths[1].exists()
    np.testing.assert_array_equal(np.load(paths[0])["arr_0"], IMAGES[3:4])


def test_mixed_sizes_are_refused_in_a_shard(tmp_path):
    draw(tmp_path, range(2))
    with RunFolder(tmp_path, SETTINGS) as run:
        run.write(2, np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(ValueError, match=r"image_2.png is \(4, 4, 3\) and its neighbours are \(6, 6, 3\)"):
            run.finish({})


def test_a_run_of_no_images_still_has_a_record(tmp_path):
    assert draw(tmp_path, []) == []
    assert json.loads((tmp_path / "run.json").read_text())["images"] == 0
