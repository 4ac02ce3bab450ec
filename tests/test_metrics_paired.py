"""Paired distances in cases that can be worked out by hand."""

import numpy as np
import pytest

from metrics.paired import perceptual, psnr, rmse, ssim

CHECKS = np.where(np.add.outer(np.arange(24), np.arange(24)) % 2, 1.0, -1.0)[None, :, :, None]
C1, C2 = 1e-4, 9e-4


def flat(*values):
    return np.array(values)[:, None, None, None] * np.ones((1, 16, 16, 3))


def test_rmse_and_psnr_of_an_offset():
    a, b = flat(0.5, 0.2, 0.7), flat(0.6, 0.2, 0.69)
    np.testing.assert_allclose(rmse(a, b), [0.1, 0, 0.01], atol=1e-15)
    np.testing.assert_allclose(psnr(a, b), [20, np.inf, 40], rtol=1e-12)


def test_rmse_averages_squares_over_pixels():
    a = np.zeros((1, 2, 2, 1))
    b = a.copy()
    b[0, 0, 0] = 0.8
    np.testing.assert_allclose(rmse(a, b), 0.4, rtol=1e-15)


def test_ssim_of_flat_images_is_the_luminance_term():
    expected = [(2 * 0.01 * 0.02 + C1) / (0.01**2 + 0.02**2 + C1), (2 * 0.3 * 0.9 + C1) / (0.3**2 + 0.9**2 + C1)]
    np.testing.assert_allclose(ssim(flat(0.01, 0.3), flat(0.02, 0.9)), expected, rtol=1e-12)


def test_ssim_of_two_contrasts_is_the_structure_term():
    # A Gaussian window averages a checkerboard to nearly nothing, so means agree and deviations are the amplitudes.
    a, b = 0.5 + 0.03 * CHECKS, 0.5 + 0.05 * CHECKS
    expected = (2 * 0.03 * 0.05 + C2) / (0.03**2 + 0.05**2 + C2)
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(ssim(0.5 - 0.3 * CHECKS, 0.5 + 0.3 * CHECKS), -(0.18 - C2) / (0.18 + C2), rtol=1e-5)


def test_ssim_window_is_gaussian_and_stays_inside():
    # One window only; a bright centre pixel of height 1 has mean w and second moment w, w the window's central weight.
    weight = 1 / np.exp(-(np.arange(-5, 6) ** 2) / 4.5).sum() ** 2
    a, b = np.zeros((2, 1, 11, 11, 1))
    a[0, 5, 5] = 1
    expected = C1 / (weight**2 + C1) * C2 / (weight - weight**2 + C2)
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-12)


def test_ssim_is_one_for_equal_images_only():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3), dtype=np.uint8)
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-12)
    assert (ssim(images, images[::-1])[[0, 2]] < 0.5).all()


@pytest.mark.parametrize("n", [1, 3, 4, 7])
def test_a_networks_distance_is_taken_in_whole_batches_and_in_order(n):
    shapes = []

    def distance(a, b):
        shapes.append((a.shape, a.dtype))
        return ((a - b) ** 2).mean(axis=(1, 2, 3))

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, n, 5, 6, 3)).astype(np.uint8)
    np.testing.assert_allclose(perceptual(distance, a, b, batch=3), rmse(a, b) ** 2, rtol=1e-5)
    assert set(shapes) == {((3, 5, 6, 3), np.dtype(np.float32))}


def test_unequal_or_tiny_sets_are_refused():
    with pytest.raises(ValueError, match="two equal sets.*--seeds"):
        rmse(flat(0.1), flat(0.1, 0.2))
    with pytest.raises(ValueError, match="window is 11 px and the images are 8 x 8"):
        ssim(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)))
