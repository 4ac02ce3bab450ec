"""Correctors: Langevin steps at a fixed noise level, x <- x + eps s + sqrt(2 eps) z.

They differ in the step size alone. `langevin` sets it from the norms of the noise and of the drift as they stand, so
that the drift is snr times the noise: eps = 2 alpha_k (snr ||z||/||s||)^2 (Song et al. 2021, algorithms 4 and 5).
`ald`, annealed Langevin dynamics, takes eps = 2 alpha_k (snr sigma(t))^2 (Song and Ermon 2019). With a preconditioner
the norms are those of M z and M M^T s. Each step costs 1 network call.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from array_types import PerImage, PerImageOrAll, Scalar, Table
from sde_lib import GaussianSDE, Levels

STEP_NORMS = ("sample", "batch")


class Corrector(NamedTuple):
    """What sets the step size a level, [n] each."""

    relative: Table  # factor of (||z||/||s||)^2; 0 where the step is fixed
    fixed: Table  # the step itself; 0 where it follows the norms


def langevin(sde: GaussianSDE, levels: Levels, snr: float) -> Corrector:
    relative = 2 * levels.langevin_alpha * snr**2
    return Corrector(relative, 0 * relative)


def ald(sde: GaussianSDE, levels: Levels, snr: float) -> Corrector:
    fixed = 2 * levels.langevin_alpha * (snr * sde.sigma(levels.t)) ** 2
    return Corrector(0 * fixed, np.asarray(fixed))


CORRECTORS: dict[str, Callable[[GaussianSDE, Levels, float], Corrector]] = {"langevin": langevin, "ald": ald}


def step_size(relative: Scalar, fixed: Scalar, drift: PerImage, noise: PerImage, step_norm: str) -> PerImageOrAll:
    """eps for norms of drift and noise, each [b]; "batch" averages the norms over the batch, as published programs do.

    With "batch" an image depends on its batch mates: keep it for comparison with the published programs only.
    """
    if step_norm == "batch":
        drift, noise = (norm.mean(keepdims=True) for norm in (drift, noise))
    # A drift of exactly zero (a stub network, a padded image) takes no Langevin step rather than an infinite one.
    ratio = jax.numpy.where(drift > 0, noise / jax.numpy.where(drift > 0, drift, 1), 0)
    return fixed + relative * ratio**2
