"""Fidelity and diversity apart: is each sample like some real image, and each real image like some sample?

Kynkaanniemi et al. (2019), "Improved precision and recall metric": a set of features is thickened to the union of
balls around its points, each reaching to the point's k-th nearest neighbour. Precision is the share of samples inside
the real set's balls, recall the share of real images inside the samples'. A sampler that draws one fine image again
and again has precision 1 and recall near 0. Both depend on n: compare at equal n, of both sets.
"""

from typing import NamedTuple

import numpy as np

from metrics.inputs import Features

_BLOCK = 1024


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


def precision_recall(samples: Features, reference: Features, k: int = 3) -> PrecisionRecall:
    """Both shares for features [n, f] and [m, f]. k = 3 as published. Costs O((n + m)^2 f).

    Raises ValueError when the features differ in number or a set has no k-th neighbour.
    """
    samples, reference = np.asarray(samples, np.float64), np.asarray(reference, np.float64)
    if samples.ndim != 2 or samples.shape[1:] != reference.shape[1:] or min(len(samples), len(reference)) <= k:
        raise ValueError(
            f"Precision and recall with k={k} need [n, f] and [m, f] with n, m > {k}, got {samples.shape} and "
            f"{reference.shape}; draw more images (--num_samples) or compare equal features."
        )
    return PrecisionRecall(_covered(samples, reference, k), _covered(reference, samples, k))


def _covered(points, centres, k):
    """Share of `points` inside the ball of at least one of the `centres`."""
    # The nearest point to a centre is itself, at index 0.
    radii = np.concatenate([np.partition(rows, k, axis=1)[:, k] for rows in _distances(centres, centres)])
    inside = [np.any(rows <= radii[None], axis=1) for rows in _distances(points, centres)]
    return float(np.mean(np.concatenate(inside)))


def _distances(a, b):
    """Squared distances in blocks of rows of a."""
    centre = b.mean(axis=0)[None]  # less cancellation below
    a, b = a - centre, b - centre
    for start in range(0, len(a), _BLOCK):
        rows = a[start : start + _BLOCK]
        yield np.maximum(np.sum(rows**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None] - 2 * rows @ b.T, 0)
