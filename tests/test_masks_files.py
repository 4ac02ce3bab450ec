"""Mask files: both layouts, round trips, and every way a file can be wrong."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from masks import profiles
from masks.estimate import collect, masks_from
from masks.files import read_mask, write_mask

SHAPE = (6, 4, 3)


@pytest.fixture
def masks():
    images = np.random.default_rng(0).uniform(0, 1, (5, *SHAPE))
    return masks_from(collect([images]))


def save(path, array):
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize("kind", ["freq", "space"])
def test_a_written_mask_is_read_back_with_its_provenance_beside_it(tmp_path, masks, kind):
    mask = getattr(masks, kind)
    write_mask(tmp_path / "new" / "mask.npy", mask, {"n": 5, "data": "x.zip", "range": [0, 1]})
    np.testing.assert_allclose(read_mask(str(tmp_path / "new" / "mask.npy"), kind, SHAPE), mask, rtol=1e-6)
    stored = np.load(tmp_path / "new" / "mask.npy")
    assert stored.shape == (3, 6, 4) and stored.dtype == np.float32 and stored.flags.c_contiguous
    side = json.loads((tmp_path / "new" / "mask.json").read_text())
    assert side["n"] == 5 and side["data"] == "x.zip" and side["shape"] == [3, 6, 4]
    assert side["sha256"] == hashlib.sha256((tmp_path / "new" / "mask.npy").read_bytes()).hexdigest()
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["mask.json", "mask.npy"]


@pytest.mark.parametrize("layout", ["chw", "hwc", "1chw", "npz", "npz of both"])
def test_published_and_channels_last_layouts_are_told_apart(tmp_path, masks, layout):
    chw = np.moveaxis(masks.freq, -1, 0)
    path = tmp_path / "mask.npy"
    if layout.startswith("npz"):
        path = tmp_path / "mask.npz"
        np.savez(path, **({"freq": chw, "space": chw} if layout == "npz of both" else {"anything": chw}))
    else:
        np.save(path, {"chw": chw, "hwc": masks.freq, "1chw": chw[None]}[layout])
    np.testing.assert_allclose(read_mask(str(path), "freq", SHAPE), masks.freq, rtol=1e-12)


def test_a_frequency_mask_comes_back_exactly_even(tmp_path, masks):
    noisy = masks.freq + 1e-5 * np.random.default_rng(0).normal(size=SHAPE)
    mask = read_mask(save(tmp_path / "f.npy", noisy), "freq", SHAPE)
    np.testing.assert_array_equal(mask, np.roll(mask[::-1, ::-1], (1, 1), (0, 1)))


def test_a_missing_file_names_what_can_be_used_without_one(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"--freq_mask_path=\S+f.npy: no such file.*--mode=masks.*`natural`.*power:2.0"
    ):
        read_mask(str(tmp_path / "f.npy"), "freq", SHAPE)
    with pytest.raises(FileNotFoundError, match=r"--space_mask_path=\S+s.npy: no such file.*--mode=masks") as caught:
        read_mask(str(tmp_path / "s.npy"), "space", SHAPE)
    assert "natural" not in str(caught.value)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((3, 6, 5), r"shape \(3, 6, 5\); the model's images need \(3, 6, 4\) or \(6, 4, 3\)"),
        ((6, 4), r"shape \(6, 4\); the model's"),
        ((1, 6, 4), r"shape \(1, 6, 4\); the model's"),
        ((2, 3, 6, 4), r"shape \(2, 3, 6, 4\); the model's"),
    ],
)
def test_a_wrong_shape_names_both_shapes(tmp_path, shape, message):
    with pytest.raises(ValueError, match=message):
        read_mask(save(tmp_path / "s.npy", np.ones(shape)), "space", SHAPE)


def test_a_shape_that_reads_both_ways_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(3, 3, 3\), which reads as \(C, H, W\) and as \(H, W, C\)"):
        read_mask(save(tmp_path / "s.npy", np.ones((3, 3, 3))), "space", (3, 3, 3))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda m: np.where(np.arange(4)[None, :, None] == 1, np.nan, m),
            "18 values that are NaN",
        ),
        (lambda m: np.where(m == m.max(), np.inf, m), "1 values that are NaN or infinite"),
        (lambda m: m - m.max() / 2, "cannot be negative, as mean squares are not; found -"),
        (lambda m: 0 * m, "zero everywhere, as if made from black images"),
        (lambda m: m.astype(complex), "holds complex128 numbers"),
        (lambda m: m > 1, "holds bool numbers"),
        (lambda m: np.fft.fftshift(m, axes=(0, 1)), r"strongest at the highest frequency, \[3, 2\].*undo the fftshift"),
        (lambda m: np.roll(m, 1, axis=0), "f.npy is not even: f.k. and f.-k. differ by"),
    ],
)
def test_numbers_no_mask_can_have_are_refused(tmp_path, masks, spoil, message):
    with pytest.raises(ValueError, match=message):
        read_mask(save(tmp_path / "f.npy", spoil(masks.freq)), "freq", SHAPE)


def test_a_file_that_is_no_array_or_leaves_a_choice_is_refused(tmp_path, masks):
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(ValueError, match="text.npy begins with b'hello', as no .npy or .npz file does"):
        read_mask(str(tmp_path / "text.npy"), "freq", SHAPE)
    whole = Path(save(tmp_path / "cut.npy", masks.freq)).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="cut.npy is not an array file"):
        read_mask(str(tmp_path / "cut.npy"), "freq", SHAPE)
    np.savez(tmp_path / "two.npz", a=masks.freq, b=masks.freq)
    with pytest.raises(ValueError, match=r"holds arrays \['a', 'b'\]; name the one to use 'freq'"):
        read_mask(str(tmp_path / "two.npz"), "freq", SHAPE)


@pytest.mark.parametrize("scale", [0.5, 2])
def test_masks_of_another_size_are_resized_with_a_warning(tmp_path, scale):
    profile = profiles.power_law(2.0)
    size = int(32 * scale)
    freq = save(tmp_path / "f.npy", np.moveaxis(profiles.draw(profile, 32, 32, 3), -1, 0))
    with pytest.warns(UserWarning, match=rf"f.npy is for images of 32x32 and was resized to {size}x{size}"):
        resized = read_mask(freq, "freq", (size, size, 3))
    np.testing.assert_allclose(resized, profiles.draw(profile, size, size, 3), rtol=1e-6)
    with pytest.raises(ValueError, match="no log power; it cannot be resized"), pytest.warns(UserWarning):
        read_mask(save(tmp_path / "p.npy", 1e4 * np.load(freq)), "freq", (size, size, 3))
    ramp = np.broadcast_to((np.arange(32) + 0.5)[:, None, None] / 32, (32, 32, 3))
    with pytest.warns(UserWarning, match=rf"resized to {size}x{size}"):
        resized = read_mask(save(tmp_path / "s.npy", ramp), "space", (size, size, 3))
    assert resized.shape == (size, size, 3)
    inner = slice(size // 8, -size // 8)
    np.testing.assert_allclose(resized[inner, 0, 0], ((np.arange(size) + 0.5) / size)[inner], atol=1e-3)


def test_oblong_masks_keep_their_axes_when_resized(tmp_path):
    columns = np.broadcast_to(np.arange(8.0)[None, :, None] + 1, (6, 8, 3))
    with pytest.warns(UserWarning, match="images of 6x8 and was resized to 12x16"):
        resized = read_mask(save(tmp_path / "s.npy", np.moveaxis(columns, -1, 0)), "space", (12, 16, 3))
    np.testing.assert_allclose(resized[3, 1:-1:2, 0], np.arange(8.0)[:7] + 1.25, atol=1e-6)


def test_a_power_law_and_the_natural_profile_need_no_file():
    drawn = read_mask("power:2.0", "freq", (8, 8, 3))
    np.testing.assert_array_equal(drawn, profiles.draw(profiles.power_law(2.0), 8, 8, 3))
    assert read_mask("natural", "freq", (16, 16, 3)).shape == (16, 16, 3)
    assert read_mask("natural", "freq", (16, 16, 1)).shape == (16, 16, 1)


@pytest.mark.parametrize(
    "path, kind, message",
    [
        ("power:2.0", "space", "'power:2.0' describes frequencies; only --freq_mask_path"),
        ("natural", "space", "'natural' describes frequencies"),
        ("power:steep", "freq", "write the exponent as a number, for example power:2.0"),
        ("power:-1", "freq", r"exponent must lie in \[0, 8\]"),
    ],
)
def test_drawn_masks_that_make_no_sense_are_refused(path, kind, message):
    with pytest.raises(ValueError, match=message):
        read_mask(path, kind, (8, 8, 3))


@pytest.mark.parametrize("kind", ["freq", "space"])
def test_the_shipped_masks_of_the_demo_are_whole_and_fit_its_images(kind):
    path = Path(__file__).parent.parent / "masks" / f"flowers32_{kind}.npy"
    side = json.loads(path.with_suffix(".json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == side["sha256"] and side["n"] == 3303
    mask = read_mask(str(path), kind, (32, 32, 3))
    assert np.unravel_index(mask.argmax(), mask.shape)[:2] == (0, 0) or kind == "space"
