"""The kernel distance against moment identities and a brute-force jackknife."""

import numpy as np
import pytest

from metrics.kernel_distance import kernel_distance


def moment_tensors(x, order):
    """All products of `order` coordinates of each row, [n, f ** order]."""
    products = np.ones((len(x), 1))
    for _ in range(order):
        products = np.einsum("ni,nj->nij", products, x).reshape(len(x), -1)
    return products


def distance_from_moments(a, b):
    """(x . y / f + 1)^3 expands into inner products of moment tensors; pairs of one image with itself are taken out."""
    f, total = a.shape[1], 0.0
    for order, binomial in enumerate((1, 3, 3, 1)):
        ta, tb = moment_tensors(a, order), moment_tensors(b, order)
        within = [(np.sum(t.sum(0) ** 2) - np.sum(t**2)) / (len(t) * (len(t) - 1)) for t in (ta, tb)]
        total += binomial / f**order * (within[0] + within[1] - 2 * ta.mean(0) @ tb.mean(0))
    return total


def test_value_is_the_difference_of_the_first_three_moments():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 4)), rng.gamma(1.0, size=(23, 4))
    np.testing.assert_allclose(kernel_distance(a, b).value, distance_from_moments(a, b), rtol=1e-10)


def test_blocks_of_rows_add_up():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(1100, 2)), rng.normal(1, 1, size=(1030, 2))
    np.testing.assert_allclose(kernel_distance(a, b).value, distance_from_moments(a, b), rtol=1e-9)


def test_interval_is_that_of_leaving_out_each_image_in_turn():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(12, 3)), rng.normal(0.5, 1, size=(9, 3))
    without_a = [distance_from_moments(np.delete(a, i, axis=0), b) for i in range(12)]
    without_b = [distance_from_moments(a, np.delete(b, i, axis=0)) for i in range(9)]
    variance = 11 * np.var(without_a) + 8 * np.var(without_b)
    found = kernel_distance(a, b)
    np.testing.assert_allclose(found.high - found.value, 1.959964 * np.sqrt(variance), rtol=1e-6)


def test_equal_distributions_average_to_zero():
    rng = np.random.default_rng(3)
    values = [kernel_distance(*rng.normal(size=(2, 20, 3))).value for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"n, m >= 3; got \(2, 3\) and \(5, 3\)"):
        kernel_distance(np.ones((2, 3)), np.ones((5, 3)))
