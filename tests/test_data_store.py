import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data import store
from data.store import Specification, StoreBatches

ROOT = Path(__file__).parent.parent
SPEC = Specification(
    shape=(2, 2, 3),
    count=10,
    seed=7,
    teacher={"name": "mixture", "sha256": "00", "predicts": "x0", "sde": {"name": "vesde"}, "prior_scale": 50.0},
    sampler={"method": "heun", "num_steps": 20, "calls": 39},
    label_times=(0.5, 0.25, 0.0),
    eval_times=(1.0, 0.5, 0.25),
    lam=(-3.0, -1.0, 1.0),
    shard_size=4,
)


def frames_of(spec, indices):
    """Something that depends on the record alone, as a teacher's frames do."""
    noise = np.asarray(store.start_noise(spec.seed, indices, spec.shape))
    return np.stack([noise * (m + 1) for m in range(len(spec.label_times))], axis=1)


def fill(folder, spec=SPEC, most=None):
    made = store.create(folder, spec)
    for indices in made.pending()[:most]:
        made.write(indices, frames_of(spec, indices), np.asarray(indices) % 3)
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_records_come_back_in_the_order_asked_for(tmp_path):
    fill(tmp_path)
    found = store.open_store(tmp_path).read([9, 0, 5])
    assert found.indices.tolist() == [9, 0, 5] and found.label.tolist() == [0, 0, 2]
    np.testing.assert_array_equal(found.frames, frames_of(SPEC, [9, 0, 5]).astype(np.float16))
    np.testing.assert_array_equal(found.images, found.frames[:, -1].astype(np.float32))


def test_noise_is_the_fold_of_seed_and_index_whatever_the_batch(tmp_path):
    made = fill(tmp_path)
    alone = jax.random.normal(jax.random.fold_in(jax.random.key(7), 5), (2, 2, 3), np.float32)
    np.testing.assert_array_equal(made.noise([3, 5, 1])[1], alone)
    np.testing.assert_array_equal(made.noise([5])[0], alone)


def test_a_store_resumed_at_any_shard_has_the_same_bytes(tmp_path):
    fill(tmp_path / "whole")
    for most in (0, 1, 2):
        fill(tmp_path / f"cut_{most}", most=most)
        fill(tmp_path / f"cut_{most}")
        assert contents(tmp_path / f"cut_{most}") == contents(tmp_path / "whole")


def test_a_shard_without_an_entry_is_written_again(tmp_path):
    fill(tmp_path / "whole")
    made = fill(tmp_path / "killed", most=2)
    (tmp_path / "killed" / store.shard_name(8)).write_bytes(b"half")  # killed between the shard and its entry
    assert [indices.start for indices in made.pending()] == [8]
    fill(tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_shards_of_several_processes_are_collected_by_whoever_opens_the_store_next(tmp_path):
    fill(tmp_path / "whole")
    first = store.create(tmp_path / "shared", SPEC)
    other = store.open_store(tmp_path / "shared")
    for number, indices in enumerate(first.pending()):
        (first, other)[number % 2].write(indices, frames_of(SPEC, indices), np.asarray(indices) % 3, apart=True)
    assert store.open_store(tmp_path / "shared").pending()  # the entries are not in store.json yet
    assert not store.create(tmp_path / "shared", SPEC).pending()
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_process_killed_while_writing_leaves_a_store_that_ends_with_the_same_bytes(tmp_path):
    spec = dataclasses.replace(SPEC, count=400, shard_size=2)
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "import dataclasses, pathlib, test_data_store as t\n"
        f"t.fill(pathlib.Path({str(tmp_path / 'killed')!r}), dataclasses.replace(t.SPEC, count=400, shard_size=2))"
    )
    child = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    while len(list((tmp_path / "killed").glob("shard_*"))) < 3:
        time.sleep(0.01)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert store.open_store(tmp_path / "killed").pending()
    for folder in ("killed", "whole"):
        fill(tmp_path / folder, spec)
    killed = contents(tmp_path / "killed")
    assert {name: killed[name] for name in killed if not name.startswith(".")} == contents(tmp_path / "whole")


def test_a_damaged_shard_is_named(tmp_path):
    fill(tmp_path)
    path = tmp_path / store.shard_name(4)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    opened = store.open_store(tmp_path)
    opened.read([0, 9])
    with pytest.raises(ValueError, match=r"shard_000000004.npy is damaged.*run --mode=pairs again"):
        opened.read([0, 6])
    with pytest.raises(ValueError, match="shard_000000004"):
        opened.verify()
    path.unlink()
    fill(tmp_path)
    opened = store.open_store(tmp_path)
    opened.verify()
    np.testing.assert_array_equal(opened.read([6]).frames, frames_of(SPEC, [6]).astype(np.float16))


def test_an_unfinished_store_says_so(tmp_path):
    fill(tmp_path, most=1)
    with pytest.raises(ValueError, match=r"shard_000000008.npy is not there: the store is not finished"):
        store.open_store(tmp_path).read([9])
    with pytest.raises(IndexError, match="records 0 to 9, asked for 10"):
        store.open_store(tmp_path).read([10])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "seed is 7, asked for 8"),
        ({"sampler": {"method": "ddim"}}, "sampler.method is heun, asked for ddim"),
        ({"guidance": {"scale": 2.0}}, "guidance.scale is None, asked for 2.0"),
    ],
)
def test_another_specification_is_refused_and_named(tmp_path, change, message):
    fill(tmp_path, most=1)
    with pytest.raises(ValueError, match=message):
        store.create(tmp_path, dataclasses.replace(SPEC, **change))


def test_a_record_at_which_the_teacher_diverged_is_left_out_and_taints_nothing(tmp_path):
    made = store.create(tmp_path, SPEC)
    for indices in made.pending():
        frames = frames_of(SPEC, indices)
        frames[np.asarray(indices) == 5] = np.nan
        with pytest.raises(ValueError, match="record 5") if 5 in indices else contextlib.nullcontext():
            made.write(indices, frames)
        made.write(indices, frames, left_out=[5])
    opened = store.open_store(tmp_path)
    assert opened.left_out() == [5] and not opened.pending()
    assert opened.usable().tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert 5 not in np.concatenate(opened.split())
    np.testing.assert_array_equal(opened.read([4, 6]).frames, frames_of(SPEC, [4, 6]).astype(np.float16))
    with pytest.raises(ValueError, match="diverged at record 5"):
        opened.read([4, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "both must be at least 1"),
        ({"dtype": "int8"}, "dtype float16 or float32"),
        ({"target": "score"}, "target x0 or state"),
        ({"label_times": (0.0, 0.5)}, "label_times must decrease"),
    ],
)
def test_a_specification_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)


def test_frames_that_cannot_be_stored_are_refused(tmp_path):
    made = store.create(tmp_path, SPEC)
    indices = made.pending()[0]
    frames = frames_of(SPEC, indices)
    with pytest.raises(ValueError, match=r"shape \(4, 2, 2, 2, 3\), not \(4, 3, 2, 2, 3\)"):
        made.write(indices, frames[:, :2])
    frames[2, 1, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"record 2 reach 1e\+06, which float16 does not hold"):
        made.write(indices, frames)
    assert made.pending()[0] == indices


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"format": "teacher-store", "version": 2}'])
def test_damaged_metadata_is_named(tmp_path, text):
    (tmp_path / store.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"store.json is no metadata that this program"):
        store.open_store(tmp_path)


def test_a_folder_without_a_store_is_said_to_be_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no teacher's store.*--mode=pairs"):
        store.open_store(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("sha256", "0"), ("probe", [0.0] * 16)])
def test_noise_that_would_be_drawn_otherwise_is_noticed(tmp_path, key, value):
    fill(tmp_path)
    metadata = json.loads((tmp_path / store.FILE).read_text())
    metadata["noise"][key] = value
    (tmp_path / store.FILE).write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="is not what this version of JAX draws"):
        store.open_store(tmp_path)


def test_states_beside_estimates_and_single_precision_are_kept(tmp_path):
    spec = dataclasses.replace(SPEC, aux=True, dtype="float32", label_times=(0.0,), count=3)
    made = store.create(tmp_path, spec)
    images = frames_of(spec, range(3))[:, 0]
    made.write(range(3), images, aux=-images)  # pairs need no axis of frames
    found = store.open_store(tmp_path).read(range(3))
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.aux[:, 0], -images)
    assert found.label.tolist() == [-1, -1, -1]


def test_the_last_hundredth_is_held_out():
    def split(count):
        return store.Store(Path(), dataclasses.replace(SPEC, count=count), {}).split()

    assert split(1000)[1].tolist() == list(range(990, 1000)) and len(split(1000)[0]) == 990
    assert [len(part) for part in split(10)] == [9, 1] and [len(part) for part in split(1)] == [1, 0]


def test_batches_depend_on_seed_and_number_and_flip_noise_with_frames(tmp_path):
    fill(tmp_path, dataclasses.replace(SPEC, dtype="float32"))
    opened = store.open_store(tmp_path)
    batches = StoreBatches(opened, opened.split()[0], 6, seed=1, flip=True)
    batch = batches.batch(3)
    np.testing.assert_array_equal(batches.batch(3)["frames"], batch["frames"])
    for m in range(3):
        np.testing.assert_array_equal(batch["frames"][:, m], batch["noise"] * (m + 1))
    flipped = [not np.array_equal(n, w) for n, w in zip(batch["noise"], opened.noise(batch["index"]), strict=True)]
    assert 0 < sum(flipped) < 6
    np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
    seen = np.concatenate([batches.batch(step)["index"] for step in range(3)])
    assert sorted(seen.tolist()) == sorted(list(range(9)) * 2)  # two epochs, the held-out record never
