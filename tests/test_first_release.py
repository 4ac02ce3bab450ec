"""What the first release wrote is read for ever, and what a later one writes is refused by name, not misread."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

import run_lib
from benchmarks.first_release import SHAPE, ramp
from checkpoints import native, read, safetensors_file
from data import store
from masks.files import read_mask
from sampling import learned

FIRST = golden_folder("first_release")


def test_weights_give_the_network_the_answers_of_then():
    model = run_lib.load(checkpoint=str(FIRST / "model.safetensors"))
    x, s = ramp()
    with jax.enable_x64(False):
        denoised = model.denoise(jnp.asarray(x), jnp.asarray(s))
    expected = np.load(FIRST / "expected.npz")["denoised"]
    assert np.isfinite(expected).all() and expected.std() > 0.01
    np.testing.assert_allclose(denoised, expected, atol=1e-4 * np.abs(expected).max())


def test_masks_schedule_and_store_hold_what_they_held():
    assert read_mask(str(FIRST / "space.npy"), "space", SHAPE)[:, 0, 0].tolist() == pytest.approx(np.linspace(1, 3, 8))
    assert read_mask(str(FIRST / "freq.npy"), "freq", SHAPE)[[0, 1, 4], 0, 0].tolist() == [9, 8, 5]
    schedule = learned.read(str(FIRST / "schedule.json"))
    assert (schedule.solver, schedule.order, schedule.grid.num_steps) == ("unipc", 2, 3)
    assert schedule.grid.s[0] == pytest.approx(50) and schedule.grid.s[-1] == 0
    pairs = store.open_store(FIRST / "pairs")
    pairs.verify()
    assert len(pairs) == 3
    np.testing.assert_array_equal(pairs.read([2]).images, (np.asarray(pairs.noise([2])) / 2).astype(np.float16))


def newer(name: str, folder: Path) -> Path:
    """A copy of a file of the first release that says it is of the version after ours."""
    path = Path(shutil.copytree(FIRST, folder / "newer")) / name
    if path.suffix == ".safetensors":
        tensors, metadata = safetensors_file.load(FIRST / name)  # mapped from there while it is written here
        with path.open("wb") as file:
            safetensors_file.dump(file, tensors, metadata | {"version": str(native.VERSION + 1)})
    else:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"version": content["version"] + 1}))
    return path


@pytest.mark.parametrize(
    ("name", "reader", "message"),
    [
        ("model.safetensors", read, "has format version 2, this program reads 1; update it"),
        (
            "freq.json",
            lambda p: read_mask(str(p.with_suffix(".npy")), "freq", SHAPE),
            "version 2, .* reads 1; update it",
        ),
        ("schedule.json", lambda path: learned.read(str(path)), "has version 2 of the format, this program reads 1"),
        ("pairs/store.json", lambda path: store.open_store(path.parent), "version 1. reads: .*version 2"),
    ],
)
def test_a_file_of_a_newer_version_is_refused(tmp_path, name, reader, message):
    with pytest.raises(ValueError, match=message):
        reader(newer(name, tmp_path))


def test_a_mask_beside_somebody_elses_json_is_read(tmp_path):
    shutil.copy(FIRST / "freq.npy", tmp_path)
    (tmp_path / "freq.json").write_text('["version", 2]')
    assert read_mask(str(tmp_path / "freq.npy"), "freq", SHAPE).shape == SHAPE
