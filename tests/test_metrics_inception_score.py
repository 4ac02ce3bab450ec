"""The Inception score has closed forms where a classifier is sure, undecided, or of two minds."""

import numpy as np
import pytest

from metrics.inception_score import inception_score


def sure_of(classes, total):
    return 60.0 * np.eye(total)[np.asarray(classes)]


def test_equally_frequent_certain_classes_score_their_number():
    score = inception_score(sure_of(np.arange(40) % 8, 10), splits=5)
    np.testing.assert_allclose(score, (8, 0), atol=1e-10)


def test_certain_classes_of_unequal_frequency_score_the_exponential_of_their_entropy():
    share = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-(share * np.log(share)).sum())
    np.testing.assert_allclose(inception_score(sure_of([0, 0, 1, 2], 3), splits=1).mean, expected, rtol=1e-12)


def test_images_that_look_alike_score_one():
    logits = np.tile(np.random.default_rng(0).normal(size=(1, 7)), (12, 1))
    np.testing.assert_allclose(inception_score(logits, splits=3), (1, 0), atol=1e-12)


def test_the_score_is_the_exponential_of_the_mutual_information_of_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    logits = np.random.default_rng(1).normal(0, 2, size=(30, 6)) + 500  # a shift of all logits changes nothing
    p = np.exp(logits - 500)
    p /= p.sum(axis=1, keepdims=True)
    parts = [
        np.exp(scipy_stats.entropy(part, np.tile(part.mean(axis=0), (len(part), 1)), axis=1).mean())
        for part in (p[:7], p[7:15], p[15:22], p[22:])  # ends at i n // 4
    ]
    found = inception_score(logits, splits=4)
    np.testing.assert_allclose(found, (np.mean(parts), np.std(parts)), rtol=1e-12)


def test_a_class_that_no_image_can_have_does_no_harm():
    logits = np.array([[0.0, 0.0, -2000.0], [0.0, 0.0, -3000.0]])
    assert inception_score(logits, splits=1).mean == pytest.approx(1)


def test_fewer_images_than_parts_are_refused():
    with pytest.raises(ValueError, match=r"logits \(4, 3\) in 10 parts .*--num_samples"):
        inception_score(np.zeros((4, 3)))
