"""The kernel distance: unbiased at any n, so the one to quote when images are few.

It compares all moments up to the third of two sets of features. With Inception features it is KID.
"""

import numpy as np

from metrics.inputs import Features
from metrics.intervals import Interval, normal_interval


def kernel_distance(a: Features, b: Features, level: float = 0.95) -> Interval:
    """Squared MMD with the cubic kernel k(x, y) = (x . y / f + 1)^3, unbiased, with a jackknife interval.

    Binkowski et al. (2018), "Demystifying MMD GANs" (KID on Inception features). They average over random subsets; here
    all pairs are used once, which needs no seed and has the smaller variance. Unbiased at any n, so it may be negative.
    The interval leaves out one image at a time, of either set, which row sums of the kernel give without extra work.

    Args: a [n, f] and b [m, f], n, m >= 3. Costs O((n + m)^2 f) time and O(n + m) memory.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 3:
        raise ValueError(f"The kernel distance needs [n, f] and [m, f] with n, m >= 3; got {a.shape} and {b.shape}.")
    within_a, within_b = _kernel_row_sums(a, a) - _kernel(a, a), _kernel_row_sums(b, b) - _kernel(b, b)
    a_to_b, b_to_a = _kernel_row_sums(a, b), _kernel_row_sums(b, a)
    pairs = a_to_b.sum()
    value = _mean_pair(within_a) + _mean_pair(within_b) - 2 * pairs / (len(a) * len(b))
    variance = _jackknife_variance(within_a, a_to_b, len(b)) + _jackknife_variance(within_b, b_to_a, len(a))
    return normal_interval(float(value), float(np.sqrt(variance)), level)


def _kernel(x, y):
    """k between rows of equal index."""
    return (np.sum(x * y, axis=1) / x.shape[1] + 1) ** 3


def _kernel_row_sums(x, y, block=1024):
    blocks = (x[start : start + block] for start in range(0, len(x), block))
    return np.concatenate([((rows @ y.T / x.shape[1] + 1) ** 3).sum(axis=1) for rows in blocks])


def _mean_pair(row_sums):
    n = len(row_sums)
    return row_sums.sum() / (n * (n - 1))


def _jackknife_variance(within, across, m):
    """Variance of the distance due to one set: its terms recomputed without each of its n images in turn."""
    n = len(within)
    own = (within.sum() - 2 * within) / ((n - 1) * (n - 2))
    cross = (across.sum() - across) / ((n - 1) * m)
    return (n - 1) * np.var(own - 2 * cross)
