"""Intervals: known quantiles, the known error of a mean, and no duplicates."""

import numpy as np
import pytest

from metrics.intervals import jackknife_interval, normal_interval


def test_normal_interval_has_the_textbook_quantiles():
    low, high = normal_interval(1.0, 2.0)[1:]
    np.testing.assert_allclose([low, high], [1 - 2 * 1.959963985, 1 + 2 * 1.959963985], rtol=1e-9)
    np.testing.assert_allclose(normal_interval(0.0, 1.0, level=0.6826894921).high, 1.0, rtol=1e-8)


def test_interval_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=500)
    found = jackknife_interval(lambda index: values[index].mean(), 500, replicates=2000)
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * values.std() / np.sqrt(500), rtol=0.04)
    assert found.value == values.mean()


def test_no_item_is_drawn_twice_and_a_tenth_is_left_out():
    sizes = []
    jackknife_interval(lambda index: sizes.append((len(index), len(np.unique(index)))) or 0.0, 95, replicates=5)
    assert sizes == [(86, 86)] * 5 + [(95, 95)]


def test_few_items_are_left_out_one_at_a_time():
    # The mean of {0, 1} is 1/2 with standard error s / sqrt(2) = 1/2; each half stands alone half of the time.
    found = jackknife_interval(lambda index: float(np.mean(index)), 2, replicates=4000)
    np.testing.assert_allclose(found.high - found.value, 1.96 * 0.5, rtol=0.02)


def test_one_seed_gives_one_interval():
    def spread(index):
        return float(index.sum())

    assert jackknife_interval(spread, 9, seed=1) == jackknife_interval(spread, 9, seed=1)
    assert jackknife_interval(spread, 9, seed=1) != jackknife_interval(spread, 9, seed=2)


def test_meaningless_requests_are_refused():
    with pytest.raises(ValueError, match="n=1 and replicates=100"):
        jackknife_interval(lambda index: 0.0, 1)
    with pytest.raises(ValueError, match="level 95 must lie in"):
        normal_interval(0.0, 1.0, level=95)
