"""Sliced Wasserstein distances of shifted clouds, and what each octave of the pyramid can see."""

import numpy as np
import pytest
from scipy.special import gamma

from metrics import inputs
from metrics.sliced_wasserstein import expand, laplacian_pyramid, pyramid_distances, sliced_wasserstein

RNG = np.random.default_rng(0)
PHOTOS = np.clip(0.5 + 0.1 * RNG.normal(size=(12, 32, 32, 3)), 0, 1)


def test_a_shift_of_the_cloud_is_its_mean_length_along_a_random_direction():
    # E |u . s| = |s| Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) for u uniform on the sphere.
    cloud, shift = RNG.normal(size=(50, 6)), np.array([3.0, 0, 0, -4.0, 0, 0])
    expected = 5 * gamma(3) / (np.sqrt(np.pi) * gamma(3.5))
    found = sliced_wasserstein(cloud, cloud[::-1] + shift[None], directions=20000)
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_distance_in_one_dimension_matches_sorted_points():
    a, b = np.array([[0.0], [1.0], [5.0]]), np.array([[7.0], [0.5], [1.0]])
    np.testing.assert_allclose(sliced_wasserstein(a, b), (0.5 + 0 + 2) / 3, rtol=1e-12)


def test_pyramid_adds_up_to_the_images():
    levels = laplacian_pyramid(np.repeat(PHOTOS, 2, axis=1))
    assert [level.shape[1:3] for level in levels] == [(64, 32), (32, 16)]
    levels = laplacian_pyramid(np.repeat(np.repeat(PHOTOS, 2, axis=1), 2, axis=2))
    assert [level.shape[1] for level in levels] == [64, 32, 16]
    image = levels[-1]
    for level in levels[-2::-1]:
        image = level + expand(image)
    np.testing.assert_allclose(image[:, ::2, ::2], PHOTOS, atol=1e-12)


def test_differences_of_a_constant_image_vanish():
    fine, coarse = laplacian_pyramid(np.full((1, 32, 32, 1), 0.3))
    np.testing.assert_allclose(fine, 0, atol=1e-15)
    np.testing.assert_allclose(coarse, 0.3, rtol=1e-14)


def test_blur_has_the_binomial_weights():
    impulse = np.zeros((1, 32, 32, 1))
    impulse[0, 16, 16] = 1
    coarse = laplacian_pyramid(impulse)[1][0, :, :, 0]
    np.testing.assert_allclose(coarse[8, 6:11] * 16 * 16 / 6, [0, 1, 6, 1, 0], atol=1e-12)


def test_a_colour_cast_shows_at_the_coarsest_octave_alone():
    cast = PHOTOS * 0.9 + 0.05 * np.array([0.0, 1.0, 2.0])
    faded = pyramid_distances(PHOTOS * 0.9 + 0.05, PHOTOS, directions=64)
    tinted = pyramid_distances(cast, PHOTOS, directions=64)
    assert list(tinted) == [32, 16]
    np.testing.assert_allclose(tinted[32], faded[32], rtol=1e-9)
    assert tinted[16] > 3 * faded[16]


def test_halved_contrast_is_half_the_mean_size_of_a_projection():
    # Every projection of the finest octave shrinks by one half, so |sort(a) - sort(b)| is half of |sort(b)|;
    # projections of patches of white noise, in units of their pixels' deviation, are Gaussian with variances that
    # average to 1.
    grey = pyramid_distances(0.5 + 0.5 * (PHOTOS - 0.5), PHOTOS, directions=256)
    np.testing.assert_allclose(grey[32], 0.5 * np.sqrt(2 / np.pi), rtol=0.06)


def test_patches_are_seven_pixels_square():
    # Images of just that size have one patch each, so two sets of equal images are two points.
    ours, theirs = np.zeros((2, 3, 7, 7, 1))
    ours[:, 0, 0], theirs[:, 6, 6] = 1, 1
    length = np.sqrt(2) / np.sqrt(1 / 49 - 1 / 49**2)
    expected = length * gamma(24.5) / (np.sqrt(np.pi) * gamma(25))
    np.testing.assert_allclose(pyramid_distances(ours, theirs, directions=20000)[7], expected, rtol=0.01)


def test_equal_sets_are_no_distance_apart_and_other_draws_are_near():
    more = np.clip(0.5 + 0.1 * np.random.default_rng(1).normal(size=(30, 32, 32, 3)), 0, 1)
    assert set(pyramid_distances(PHOTOS, PHOTOS, directions=32).values()) == {0.0}
    assert 0 < max(pyramid_distances(PHOTOS, more, directions=32).values()) < 0.15


def test_patches_come_from_all_batches(monkeypatch):
    monkeypatch.setattr(inputs, "_BATCH_BYTES", 5 * PHOTOS[0].size * 8)
    dark = np.concatenate([PHOTOS[:11], PHOTOS[11:] * 0])
    assert pyramid_distances(dark, PHOTOS, directions=32)[16] > 0.1


def test_sets_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"\(32, 32, 3\) and reference \(16, 16, 3\).*config.data.image_size"):
        pyramid_distances(PHOTOS, PHOTOS[:, :16, :16])
    with pytest.raises(ValueError, match=r"Patches \(3, 2\) and \(4, 2\)"):
        sliced_wasserstein(np.ones((3, 2)), np.ones((4, 2)))
