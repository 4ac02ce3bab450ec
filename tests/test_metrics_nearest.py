"""Planted copies are found, mirrored ones too; distances are those of the pixels."""

import numpy as np
import pytest

from metrics import inputs
from metrics.nearest import memorisation, nearest_neighbours


def photographs(seed, n):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def test_neighbours_are_those_of_an_exhaustive_search():
    brightness = np.random.default_rng(7).uniform(0.2, 1, (2, 60, 1, 1, 1))  # norms must count, not only products
    queries, training = (brightness * [photographs(0, 60), photographs(1, 60)]).astype(np.uint8)
    gaps = (queries[:, None] / 255.0 - training[None] / 255.0) ** 2
    mirrored = (queries[:, None] / 255.0 - training[None, :, :, ::-1] / 255.0) ** 2
    plain, flipped = np.sqrt(gaps.mean(axis=(2, 3, 4))), np.sqrt(mirrored.mean(axis=(2, 3, 4)))
    for mirror, every in ((False, plain), (True, np.minimum(plain, flipped))):
        found = nearest_neighbours(queries, training, count=3, mirror=mirror)
        np.testing.assert_array_equal(found.indices, np.argsort(every, axis=1)[:, :3])
        np.testing.assert_allclose(found.distance, np.sort(every, axis=1)[:, :3], rtol=1e-12)
    rows = np.arange(60)[:, None]
    np.testing.assert_array_equal(found.mirrored, (flipped < plain)[rows, found.indices])


def test_neighbours_do_not_depend_on_the_batches_images_come_in(monkeypatch):
    queries, training = photographs(8, 7), photographs(9, 50)
    whole = nearest_neighbours(queries, training)
    monkeypatch.setattr(inputs, "_BATCH_BYTES", 3 * training[0].size * 8)
    for expected, found in zip(whole, nearest_neighbours(queries, training), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_mirrored_copy_is_found_at_distance_zero():
    training = photographs(2, 30)
    found = nearest_neighbours(training[[4, 7]][:, :, ::-1], training)
    assert found.indices[:, 0].tolist() == [4, 7] and found.mirrored[:, 0].all()
    np.testing.assert_array_equal(found.distance[:, 0], 0)


def test_a_symmetric_image_is_its_own_neighbour_once():
    training = photographs(3, 30)
    training[5, :, 4:] = training[5, :, 3::-1]
    found = nearest_neighbours(training[5:6], training)
    assert found.indices[0, 0] == 5 != found.indices[0, 1] and found.distance[0, 1] > 0.1


def test_copies_are_counted_and_photographs_are_not():
    training, held_out, fresh = photographs(4, 100), photographs(5, 200), photographs(6, 200)
    honest = memorisation(fresh, training, held_out)
    assert honest.copies < 0.05 and abs(honest.closer - 0.5) < 0.1
    samples = fresh.copy()
    samples[:50] = training[:50, :, ::-1]
    found = memorisation(samples, training, held_out)
    np.testing.assert_allclose(found.copies, honest.copies + 0.25, atol=0.02)
    np.testing.assert_allclose(found.closer, 0.25 + 0.75 * honest.closer, atol=0.03)


def test_closer_is_the_share_of_pairs_in_which_the_sample_is_nearer():
    training = np.zeros((2, 2, 2, 1))
    samples = np.array([0.1, 0.4])[:, None, None, None] * np.ones((1, 2, 2, 1))
    held_out = np.array([0.2, 0.3, 0.5])[:, None, None, None] * np.ones((1, 2, 2, 1))
    assert memorisation(samples, training, held_out).closer == pytest.approx((3 + 1) / 6)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 3\) and training images \(2, 4, 4, 3\)"):
        nearest_neighbours(photographs(0, 2), photographs(0, 2)[:, :4, :4])
    with pytest.raises(ValueError, match="at least 2 training images"):
        nearest_neighbours(photographs(0, 2), photographs(0, 1))
