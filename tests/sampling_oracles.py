"""Closed-form denoisers, flows and clocks for the tests of `sampling`, in y = x/alpha and s = sigma/alpha."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sde_lib


class Gaussian(NamedTuple):
    """Data N(mean, std^2 I)."""

    mean: Any
    std: Any

    def __call__(self, y, s):
        return self.mean + (y - self.mean) * self.std**2 / (self.std**2 + s**2)

    def flow(self, y, s, s_next):
        """The exact probability-flow map from s to s_next."""
        return self.mean + (y - self.mean) * np.sqrt((self.std**2 + s_next**2) / (self.std**2 + s**2))


class Mixture(NamedTuple):
    """Data sum_k weights[k] N(means[k], stds[k]^2 I); stds [k], or [k, d] for diagonal covariances."""

    weights: Any
    means: Any  # [k, ...]
    stds: Any

    def __call__(self, y, s):
        means = self.means.reshape(len(self.means), -1)
        variances = jnp.broadcast_to(self.stds.reshape(len(self.stds), -1) ** 2, means.shape)
        flat = y.reshape(len(y), 1, -1)
        total = (variances + s**2)[None]
        log_weights = jnp.log(self.weights)[None] - 0.5 * jnp.sum(
            jnp.log(total) + (flat - means[None]) ** 2 / total, -1
        )
        posterior = means[None] + variances[None] / total * (flat - means[None])
        return jnp.sum(jax.nn.softmax(log_weights)[..., None] * posterior, axis=1).reshape(y.shape)


class CallLog:
    """Where a `Counted` denoiser writes down, on the host, the noise scale of every call that really happens."""

    def __init__(self):
        self.noise_scales = []

    def __call__(self, s):
        self.noise_scales.append(float(s))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["denoiser"], meta_fields=["log"])
@dataclasses.dataclass(frozen=True)
class Counted:
    """Any denoiser, its calls logged also from inside lax.scan and lax.cond."""

    denoiser: Any
    log: CallLog

    def __call__(self, y, s):
        jax.debug.callback(self.log, s, ordered=True)
        return self.denoiser(y, s)


class DiscreteVP(NamedTuple):
    """The clock of latent diffusion models: log alpha piecewise linear through 1000 training levels at t = k/1000."""

    t: np.ndarray
    log_alpha: np.ndarray

    @classmethod
    def between(cls, first, last):
        betas = np.linspace(first**0.5, last**0.5, 1000) ** 2
        return cls(np.arange(1, 1001) / 1000, 0.5 * np.cumsum(np.log1p(-betas)))

    def alpha(self, t):
        return np.exp(np.interp(t, self.t, self.log_alpha))

    def sigma(self, t):
        return np.sqrt(1 - self.alpha(t) ** 2)

    def noise_scale(self, t):
        return self.sigma(t) / self.alpha(t)

    def time(self, s):
        return np.interp(0.5 * np.log1p(s**2), -self.log_alpha, self.t)


class SigmaClock(NamedTuple):
    """EDM's clock: t = sigma."""

    def alpha(self, t):
        return np.ones_like(t)

    def noise_scale(self, t):
        return t

    def time(self, s):
        return s


CLOCKS = {
    "ve_edm": SigmaClock(),
    "vp_linear": sde_lib.VPSDE(),
    "vp_discrete_ldm": DiscreteVP.between(0.0015, 0.0195),
    "vp_discrete_sd": DiscreteVP.between(0.00085, 0.012),
}
