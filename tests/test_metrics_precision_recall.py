"""Points on a line, where the balls can be drawn by hand."""

import numpy as np
import pytest

from metrics.precision_recall import precision_recall

REAL = np.array([[0.0], [1.0], [3.0], [6.0]])  # to the 1st neighbour: 1, 1, 2, 3; to the 2nd: 3, 2, 3, 5


@pytest.mark.parametrize(
    "k, point, inside", [(1, -0.9, True), (1, -1.1, False), (1, 8.9, True), (1, 9.1, False), (2, -2.9, True),
                         (2, -3.1, False), (2, 10.9, True), (2, 11.1, False)]
)  # fmt: skip
def test_a_sample_counts_inside_the_ball_to_the_kth_neighbour(k, point, inside):
    samples = np.array([[point], [500.0], [600.0], [700.0]])
    assert precision_recall(samples, REAL, k).precision == (0.25 if inside else 0.0)


def test_roles_are_exchanged_for_recall():
    samples = np.random.default_rng(0).normal(size=(30, 3))
    reference = 2 * np.random.default_rng(1).normal(size=(40, 3))
    there, back = precision_recall(samples, reference), precision_recall(reference, samples)
    assert there == back[::-1] and there.precision > there.recall


def test_dropping_a_mode_costs_recall_and_not_precision():
    mode = np.random.default_rng(2).normal(size=(1200, 2))
    reference = np.concatenate([mode, mode + 100])
    assert precision_recall(mode, reference) == (1.0, 0.5)


def test_sets_without_a_kth_neighbour_are_refused():
    with pytest.raises(ValueError, match=r"k=3 need .* n, m > 3, got \(3, 2\) and \(9, 2\)"):
        precision_recall(np.ones((3, 2)), np.ones((9, 2)))
    with pytest.raises(ValueError, match="compare equal features"):
        precision_recall(np.ones((9, 3)), np.ones((9, 2)))
