"""Reference files survive the disk, and scores say what was compared."""

import numpy as np
import pytest

from metrics import inputs
from metrics.reference import compute_reference, load_reference, save_reference, scores, spectrum_scores

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
REFERENCE = compute_reference(IMAGES, "noise", block=4)


def test_reference_survives_the_disk(tmp_path):
    save_reference(tmp_path / "reference.npz", REFERENCE)
    loaded = load_reference(tmp_path / "reference.npz")
    assert (loaded.name, loaded.n, loaded.image_shape, loaded.block) == ("noise", 40, (8, 8, 3), 4)
    np.testing.assert_allclose(loaded.block_moments.mean, REFERENCE.block_moments.mean, rtol=1e-15)
    np.testing.assert_allclose(loaded.block_moments.covariance, REFERENCE.block_moments.covariance, rtol=1e-6)
    np.testing.assert_array_equal(loaded.radial_power, REFERENCE.radial_power)
    np.testing.assert_allclose(loaded.mean_colour, IMAGES.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)


def test_statistics_do_not_depend_on_the_batches_images_come_in(monkeypatch):
    monkeypatch.setattr(inputs, "_BATCH_BYTES", 3 * IMAGES[0].size * 8)
    again = compute_reference(IMAGES, "noise", block=4)
    np.testing.assert_allclose(again.block_moments.covariance, REFERENCE.block_moments.covariance, rtol=1e-12)
    np.testing.assert_allclose(again.radial_power, REFERENCE.radial_power, rtol=1e-12)
    np.testing.assert_allclose(again.mean_colour, REFERENCE.mean_colour, rtol=1e-12)


def test_a_set_scores_zero_against_itself():
    found = scores(IMAGES, REFERENCE, replicates=5)
    assert (found["n"], found["reference"], found["reference_n"]) == (40, "noise", 40)
    for key in ("block_frechet", "radial_power_error", "residual_noise", "colour_error"):
        assert abs(found[key]) < 1e-7, key
    assert found["block_frechet_high"] > found["block_frechet_low"] == 0 < found["block_frechet_floor"]


def test_each_score_sees_its_own_fault():
    noise = np.random.default_rng(1).normal(0, 0.2, (4000, 8, 8, 3))
    clean = scores(
        np.full((40, 8, 8, 3), 0.5) + 0 * noise[:40], compute_reference(0.5 + noise / 4, "grey"), replicates=5
    )
    np.testing.assert_allclose(clean["residual_noise"], -0.05, rtol=0.02)
    tinted = scores(IMAGES // 2 + np.array([64, 0, 0], np.uint8), REFERENCE, replicates=5)
    assert tinted["colour_error"] > 0.1
    assert tinted["residual_noise_low"] < tinted["residual_noise"] < tinted["residual_noise_high"] < 0


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match=r"Images are \(4, 8, 3\) and the reference 'noise' is \(8, 8, 3\)"):
        scores(IMAGES[:, :4], REFERENCE)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="12 samples are too few for a covariance of 12 features"):
        scores(IMAGES[:12], REFERENCE)


def test_spectrum_and_colour_are_told_of_few_samples_too():
    few = spectrum_scores(IMAGES[:12], REFERENCE, replicates=5)
    in_coarse_blocks = scores(IMAGES[:12], compute_reference(IMAGES, "noise", block=8), replicates=5)  # 3 features
    rest = in_coarse_blocks.items() - few.items()
    assert few.items() < in_coarse_blocks.items() and {name.split("_")[0] for name, _ in rest} == {"block"}


def test_files_that_are_no_reference_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No reference statistics at .*reference_statistics"):
        load_reference(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", mu=1)
    with pytest.raises(ValueError, match=r"lacks \['name', .*it holds \['mu'\]"):
        load_reference(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="is no .npz of reference statistics"):
        load_reference(tmp_path / "text.npz")
