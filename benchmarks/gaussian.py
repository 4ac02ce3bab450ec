"""What a predictor-corrector sampler makes of a Gaussian, without drawing an image: every update is linear there."""

import numpy as np

from sampling.predictor_corrector import Rows
from sde_lib import GaussianSDE


def variances(
    table: Rows, sde: GaussianSDE, start: np.ndarray, m: np.ndarray, data: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """The variance of each mode after the run, float64.

    Args:
      table: the rows of the sampler.
      start: variances of the first state; m: multipliers; data: variances of the data; count: how many real
        coefficients share each mode, all [modes].
    """
    current = start.copy()
    for n in range(len(table.t)):
        alpha, sigma = sde.alpha(table.t[n]), sde.sigma(table.t[n])
        slope = -1 / (alpha**2 * data + sigma**2)  # the exact score is slope x
        filtered = m if table.filtered[n] else np.ones_like(m)
        inner = table.pre_state[n] + table.pre_score[n] * slope
        norms = np.sum(count * filtered**2), np.sum(count * filtered**4 * inner**2 * current)
        step = table.drift[n] + (table.relative[n] * norms[0] / norms[1] if table.relative[n] else 0.0)
        gain = table.state[n] + table.score[n] * slope + step * filtered**2 * inner
        noise = (table.noise[n] + np.sqrt(2 * (step - table.drift[n]))) * table.noisy[n]
        current = gain**2 * current + (filtered * noise) ** 2
    return current
