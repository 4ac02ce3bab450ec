"""Predictors: one reverse-time step from a noise level to the next, as three numbers a level.

Every predictor is affine in the state, the score and the noise,

    x_mean = state x + score s(x, t),    x = x_mean + noise z,

so it is a function from the levels of a process to three columns of a table, made in float64 before the loop is
compiled. The sampling loop (`sampling.predictor_corrector`) applies them and puts the preconditioner in. `published`
asks for the coefficients of score_sde where they differ from the exact ones. Each step costs 1 network call.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from array_types import Table
from sde_lib import VPSDE, GaussianSDE, Levels, SubVPSDE


class Predictor(NamedTuple):
    """Coefficients of one affine step a level, [n] each."""

    state: Table
    score: Table
    noise: Table


def reverse_diffusion(sde: GaussianSDE, levels: Levels, probability_flow: bool, published: bool) -> Predictor:
    """x_mean = x - f_k + G_k^2 s, noise G_k (Song et al. 2021, appendix E); the flow: half the score, no noise."""
    state = 2 - levels.forward
    if probability_flow:
        return Predictor(state, 0.5 * levels.variance, 0 * state)
    return Predictor(state, levels.variance, np.sqrt(levels.variance))


def euler_maruyama(sde: GaussianSDE, levels: Levels, probability_flow: bool, published: bool) -> Predictor:
    """n Euler-Maruyama steps of dt = -1/n for dx = [f - g^2 s] dt + g dw, at the times of the levels."""
    dt = 1 / len(levels.t)
    state, score = 1 - dt * levels.drift, dt * levels.diffusion_squared
    if probability_flow:
        return Predictor(state, 0.5 * score, 0 * state)
    return Predictor(state, score, np.sqrt(score))


def ancestral(sde: GaussianSDE, levels: Levels, probability_flow: bool, published: bool) -> Predictor:
    """The posterior of the level below given x and the x0 that the score implies (DDPM; Song et al. 2021, appendix F).

    mean = (x + G_k^2 s)/forward; its variance G_k^2 sigma_{k-1}^2/sigma_k^2 is the exact one. Published VP code adds
    the larger variance G_k^2 = beta_k instead.
    """
    if probability_flow:
        raise ValueError(
            "predictor='ancestral' is stochastic and has no probability flow; choose --config.sampling.predictor="
            "reverse_diffusion or set --config.sampling.probability_flow=False."
        )
    if published and isinstance(sde, SubVPSDE):
        raise ValueError(
            "Published ancestral sampling exists for VE and VP, not for sub-VP; choose --config.sampling.predictor="
            "euler_maruyama, or --config.sampling.pds_mode=marginal, which has exact sub-VP transitions."
        )
    if published and isinstance(sde, VPSDE):
        noise = np.sqrt(levels.variance)
    else:
        noise = np.sqrt(levels.variance) * levels.sigma_below / levels.sigma
    return Predictor(1 / levels.forward, levels.variance / levels.forward, noise)


PREDICTORS: dict[str, Callable[[GaussianSDE, Levels, bool, bool], Predictor]] = {
    "reverse_diffusion": reverse_diffusion,
    "euler_maruyama": euler_maruyama,
    "ancestral": ancestral,
}
