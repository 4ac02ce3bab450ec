"""Frechet distances against closed forms on Gaussians, SciPy's matrix root and an independent program's figures."""

import functools
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from metrics.frechet import (
    Moments,
    frechet_distance,
    frechet_floor,
    frechet_interval,
    frechet_of_subsets,
    merge_moments,
    moments,
)

GOLDEN = Path(__file__).parent / "goldens" / "metrics" / "cifar10_statistics.npz"


def random_covariance(rng, features):
    root = rng.normal(size=(features, features))
    return root @ root.T


def test_distance_of_commuting_gaussians_is_the_difference_of_means_and_standard_deviations():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    std_a, std_b, shift = rng.uniform(0.1, 3, 5), rng.uniform(0.1, 3, 5), rng.normal(size=5)
    a = Moments(np.zeros(5), (axes * std_a[None] ** 2) @ axes.T, 100)
    b = Moments(shift, (axes * std_b[None] ** 2) @ axes.T, 100)
    expected = np.sum(shift**2) + np.sum((std_a - std_b) ** 2)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


def test_distance_of_two_dimensional_gaussians_follows_from_trace_and_determinant():
    # The root of a 2 x 2 matrix P with positive eigenvalues has trace sqrt(tr P + 2 sqrt(det P)).
    rng = np.random.default_rng(1)
    a, b = random_covariance(rng, 2), random_covariance(rng, 2)
    root_trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    found = frechet_distance(Moments(np.zeros(2), a, 9), Moments(np.zeros(2), b, 9))
    np.testing.assert_allclose(found, np.trace(a) + np.trace(b) - 2 * root_trace, rtol=1e-12)


def test_distance_agrees_with_the_matrix_root_of_scipy():
    rng = np.random.default_rng(2)
    a, b = moments(rng.normal(size=(60, 20))), moments(rng.gamma(2.0, size=(70, 20)))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-9)


def cifar10(split):
    with np.load(GOLDEN) as golden:
        covariance = np.zeros((192, 192))
        covariance[np.tril_indices(192)] = golden[f"{split}_covariance_lower"]
        covariance += np.tril(covariance, -1).T
        return Moments(golden[f"{split}_mean"], covariance, int(golden[f"{split}_n"]))


def test_distance_between_the_halves_of_cifar10_is_the_recorded_one():
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(frechet_distance(cifar10("train"), cifar10("test")), golden["frechet"], rtol=1e-8)


@pytest.mark.parametrize(("n", "recorded"), [(1024, 0.07512), (4096, 0.02265)])  # one draw each, independent program
def test_fewer_test_images_are_as_far_from_the_training_images_as_the_floor_says(n, recorded):
    train, test = cifar10("train"), cifar10("test")
    beyond = frechet_distance(train, test) - frechet_floor(train, 10000)  # what sets the two apart, but for their n
    np.testing.assert_allclose(beyond + frechet_floor(train, n), recorded, rtol=0.025)


def test_moments_of_batches_merge_to_those_of_the_whole():
    features = np.random.default_rng(3).normal(5, 2, size=(101, 4))
    batches = [features[:1], features[1:3], features[3:70], features[70:]]
    merged = functools.reduce(merge_moments, map(moments, batches))
    np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-11)
    assert merged.n == 101


def test_floor_is_what_perfect_gaussian_samples_score():
    covariance = np.diag([4.0, 1.0, 0.25, 0.01])
    rng, n = np.random.default_rng(4), 300
    reference = Moments(np.zeros(4), covariance, 10**9)
    draws = rng.normal(size=(3000, n, 4)) * np.sqrt(np.diag(covariance))[None, None]
    found = [frechet_distance(moments(draw), reference) for draw in draws]
    error = np.std(found) / np.sqrt(len(found))
    np.testing.assert_allclose(np.mean(found), frechet_floor(reference, n), atol=3 * error + 1e-6)
    assert error < 0.015 * np.mean(found)


def test_floor_in_one_dimension_is_that_of_mean_and_standard_deviation():
    # E (s - sigma)^2 = sigma^2 / (2 (n - 1)) to first order, and the mean adds sigma^2 / n.
    n = 400
    expected = 9 * (1 / n + 1 / (2 * (n - 1)))
    np.testing.assert_allclose(frechet_floor(Moments(np.zeros(1), np.array([[9.0]]), 10**6), n), expected, rtol=1e-12)


def test_floor_of_isotropic_features_follows_from_the_wishart_variance():
    # Near C = l I the distance is |E|^2 / (4 l), and E |S - C|^2 = (tr C^2 + (tr C)^2) / (n - 1) for a Wishart matrix
    # S.
    n, features, variance = 1000, 5, 2.0
    spread = (features * variance**2 + (features * variance) ** 2) / (n - 1)
    reference = Moments(np.zeros(features), variance * np.eye(features), 10**6)
    np.testing.assert_allclose(
        frechet_floor(reference, n), features * variance / n + spread / (4 * variance), rtol=1e-12
    )


def test_interval_has_the_width_of_the_sampling_error():
    # One feature, mean off by d: the distance is d^2 to leading order, so its standard error is 2 d sigma / sqrt(n).
    n, shift = 2000, 3.0
    features = np.random.default_rng(5).normal(shift, 1, size=(n, 1))
    interval = frechet_interval(features, Moments(np.zeros(1), np.eye(1), 10**6), replicates=400)
    np.testing.assert_allclose(interval.high - interval.low, 2 * 1.96 * 2 * shift / np.sqrt(n), rtol=0.12)
    np.testing.assert_allclose((interval.high + interval.low) / 2, interval.value, rtol=1e-12)


def test_interval_of_a_distance_does_not_reach_below_zero():
    features = np.random.default_rng(6).normal(size=(20, 2))
    assert frechet_interval(features, Moments(np.zeros(2), np.eye(2), 10**6)).low == 0


def test_subsets_are_judged_each_by_itself():
    rng = np.random.default_rng(9)
    features, reference = rng.normal(size=(25, 3)), Moments(np.zeros(3), np.eye(3), 100)
    parts = [frechet_distance(moments(features[:10]), reference), frechet_distance(moments(features[10:20]), reference)]
    np.testing.assert_allclose(frechet_of_subsets(features, reference, 10), np.mean(parts), rtol=1e-12)
    # Two features span one direction: a covariance v v^T has the root v v^T / |v|, so the cross term is |v|.
    pair = np.array([[0.0, 1, 2], [0, 3, 2]])
    np.testing.assert_allclose(frechet_of_subsets(pair, reference, 2), (4 + 4) + 2 + 3 - 2 * np.sqrt(2), rtol=1e-12)
    with pytest.raises(ValueError, match=r"Subsets of 26 cannot be taken from 25 features"):
        frechet_of_subsets(features, reference, 26)


def test_too_few_images_for_the_covariance_are_refused():
    good, few = moments(np.eye(5)[:, :4]), moments(np.eye(4))
    with pytest.raises(ValueError, match=r"4 samples are too few .* 4 features.*--num_samples"):
        frechet_distance(few, good)
    with pytest.raises(ValueError, match="4 reference images are too few"):
        frechet_distance(good, few)
    with pytest.raises(ValueError, match="4 samples are too few"):
        frechet_interval(np.eye(4), good)
    assert frechet_interval(np.eye(5)[:, :4], good).value < 1e-12  # subsets of 4 are no reason to refuse
    assert frechet_distance(good, few._replace(n=None)) >= 0


def test_features_of_another_size_are_refused():
    with pytest.raises(ValueError, match="Moments of 3 and of 2 features cannot be compared"):
        frechet_distance(moments(np.eye(9)[:, :3]), moments(np.eye(9)[:, :2]))


def test_moments_need_features_and_merging_needs_counts():
    with pytest.raises(ValueError, match=r"shape \(4,\); moments need \[n, f\]"):
        moments(np.ones(4))
    fit = moments(np.eye(3))
    with pytest.raises(ValueError, match="unknown n cannot be merged"):
        merge_moments(fit, fit._replace(n=None))
