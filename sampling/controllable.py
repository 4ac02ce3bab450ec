"""Inpainting, colourisation and enlarging in predictor-corrector samplers: what is observed is put back at every level.

After each update the observed part of x is replaced by the observation as the forward process would have it there,

    A x <- alpha observed + sigma A z,    z fresh,

at the level that x has come to, so that the free part is denoised beside a known part of the right noise (Song et al.
2021, appendix I, "controllable generation"). The last update comes to alpha = 1, sigma = 0: the image explains the
observation exactly. No network calls are added, and any preconditioner acts on the steps between.

The published programs put the observation back at the level before the predictor's step, and build the mean they
return from the noisy state: noise removal is lost in free pixels, the coupling in coloured ones. Here both are right.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Keys, Scalar
from sampling import base, predictor_corrector
from sampling.base import Sampler
from sampling.operators import LinearOperator, Observed, pseudo_inverse
from sampling.predictor_corrector import PredictorCorrector
from sde_lib import GaussianSDE, Levels

START = 2**20  # index of the noise that the observation begins with; updates have the numbers of their rows


class Observation(NamedTuple):
    """observed = A x0, [b, i, j, k] in the data range, or [1, ...] for all images."""

    operator: LinearOperator
    observed: Observed


def put_back(observation: Observation, x: Image, alpha: Scalar, sigma: Scalar, z: Image) -> Image:
    """x [b, h, w, c] with A x = alpha observed + sigma A z; what A does not see stays as it is."""
    operator, observed = observation
    wanted = alpha * observed.astype(x.dtype) + operator.apply(sigma * z - x)
    return x + pseudo_inverse(operator, wanted)


class Rows(NamedTuple):
    """An update of the predictor-corrector sampler a row, and the level it comes to, [n]."""

    update: predictor_corrector.Rows
    alpha: Any
    sigma: Any


class Operands(NamedTuple):
    """What the sampler needs, and what is observed."""

    sampler: predictor_corrector.Operands
    observation: Observation


def rows(settings: PredictorCorrector, sde: GaussianSDE, levels: Levels, updates: predictor_corrector.Rows) -> Rows:
    """The rows of the sampler with the level after each: a corrector stays, a predictor goes to the level below."""
    alpha = np.asarray(sde.alpha(levels.t))
    here, below = (alpha, levels.sigma), (np.append(alpha[1:], 1.0), levels.sigma_below)
    correctors = settings.steps_per_level() - (settings.predictor != "none")
    after = [here] * correctors + [below] * (settings.predictor != "none")
    columns = [np.stack(column, axis=1).reshape(-1) for column in zip(*after, strict=True)]
    columns[0][-1], columns[1][-1] = 1.0, 0.0  # the image itself, also where correctors alone end at the lowest level
    return Rows(updates, *columns)


def _draw(keys: Keys, index: Any, x: Image) -> Image:
    """Standard normal noise of each image, apart from that of the updates."""
    apart = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, index), 1))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(apart)


@dataclasses.dataclass(frozen=True)
class Step:
    """The step of a predictor-corrector sampler, then the observation put back."""

    step: base.Step

    def __call__(self, operands: Operands, state: Any, row: Rows) -> tuple[Any, Any]:
        state, record = self.step(operands.sampler, state, row.update)
        z = _draw(operands.sampler.keys, row.update.index, state.x)
        x = put_back(operands.observation, state.x, row.alpha, row.sigma, z)
        return state._replace(x=x), None if record is None else (x, record[1])


def create(sampler: Sampler, settings: PredictorCorrector, sde: GaussianSDE, levels: Levels, observe: Any) -> Sampler:
    """The predictor-corrector `sampler` of these settings and levels, held to an observation.

    observe: keys of the images [b] -> their `Observation`.
    """
    table = rows(settings, sde, levels, sampler.rows)
    alpha, sigma = float(sde.alpha(levels.t[0])), float(levels.sigma[0])

    def begin(keys: Keys) -> tuple[Operands, Any]:
        operands, state = sampler.begin(keys)
        observation, z = observe(keys), _draw(keys, START, state.x)
        x = put_back(observation, state.x, jnp.asarray(alpha, z.dtype), jnp.asarray(sigma, z.dtype), z)
        return Operands(operands, observation), state._replace(x=x)

    return sampler._replace(step=Step(sampler.step), rows=table, begin=begin)
