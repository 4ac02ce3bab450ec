"""From a network to a score: what it is told, what it predicts, and the conversions samplers need.

Samplers see a `Denoiser` only: `score(x, t)` in the process's own coordinates for stochastic methods, and
`denoise(y, s)` in the variance-exploding view y = x/alpha, s = sigma/alpha for deterministic ones.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sde_lib
from array_types import Image, NoiseLabels, OtherChannels, PerImage, Scalar
from sde_lib import GaussianSDE

TOLD = ("sigma", "log_sigma", "t", "999t", "level", "fractional_level", "index")


def level_table(sde: GaussianSDE) -> np.ndarray:
    """Marginal std at each training level of a discrete model, in the order of its integer labels, float64.

    VE labels count from the largest sigma down; VP labels count the steps of DDPM's chain upwards.
    """
    if isinstance(sde, sde_lib.VESDE):
        return sde.discrete_sigmas()[::-1].copy()
    if isinstance(sde, sde_lib.VPSDE):
        return np.sqrt(1 - np.cumprod(1 - sde.discrete_betas()))
    raise ValueError(
        f"{type(sde).__name__} has no table of training levels; only VE and VP models were trained on discrete levels. "
        "Set config.model.continuous=True."
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "conditions"),
    meta_fields=("network", "sde", "predicts", "told"),
)
@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network with its parameters, process and conventions; a pytree whose leaves are arrays.

    Attributes:
      params: the network's parameters.
      network: `(params, x, labels, **conditions) -> output`, x [b, h, w, c] in the data range, labels [b]. Channels
        beyond what is predicted (a learned variance) are left out.
      sde: the forward process.
      predicts: what the output is: "score", "eps", "x0", "v" or, with twice the channels, "both" x0 and eps.
      told: what the labels are: "sigma", "log_sigma" (of the noise scale), "t", "999t", "level" (an integer) or
        "fractional_level" (t (num_scales - 1), as score_sde tells discrete VP models) or "index" (the level of a
        process that is made of levels, `sde_lib.DiscreteVPSDE`).
      conditions: what else the network is given, one entry an image: `classes` [b], `low_res` [b, h', w', c]; empty for
        an unconditional network. Set by `given`.
    """

    params: Any
    network: Callable[..., OtherChannels]
    sde: GaussianSDE
    predicts: str = "score"
    told: str = "sigma"
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def given(self, **conditions: jax.Array) -> "Denoiser":
        """The same denoiser with these conditions beside those it has: `denoiser.given(classes=jnp.array([3, 7]))`."""
        return dataclasses.replace(self, conditions={**self.conditions, **conditions})

    def output(self, x: Image, labels: NoiseLabels) -> OtherChannels:
        """What the network says of x [b, h, w, c] under labels [b], without its learned variance; 1 network call."""
        channels = x.shape[-1] * (2 if self.predicts == "both" else 1)
        return self.network(self.params, x, labels, **self.conditions)[..., :channels]

    def output_at(self, x: Image, t: PerImage) -> OtherChannels:
        """`output` at SDE times t [b]."""
        return self.output(x, self.labels(t))

    def labels(self, t: PerImage) -> NoiseLabels:
        """What the network is told at SDE times t [b]."""
        levels = self.sde.num_scales - 1
        if self.told == "sigma":
            return self.sde.noise_scale(t)
        if self.told == "log_sigma":
            return jnp.log(self.sde.noise_scale(t))
        if self.told == "t":
            return t
        if self.told == "999t":
            return 999 * t
        if self.told == "level":
            return jnp.round((1 - t) * levels)
        if self.told == "fractional_level":
            return t * levels
        if self.told == "index" and isinstance(self.sde, sde_lib.DiscreteVPSDE):
            return self.sde.index(t)
        raise ValueError(f"told={self.told!r} is unknown; choose one of {TOLD}.")

    def std(self, t: PerImage) -> PerImage:
        """Marginal std at t [b] as the model was trained: discrete VP models have their chain's own table."""
        if self.told == "fractional_level":
            # The level below, as published; 1e-3 beyond the rounding of t in float32 (2e-4 at 2000 levels).
            level = jnp.floor(self.labels(t) + 1e-3).astype(jnp.int32)
            return jnp.asarray(level_table(self.sde), t.dtype)[level]
        return self.sde.sigma(t)

    def signal(self, t: PerImage) -> PerImage:
        """Factor of the image in x at t [b], as the model was trained: beside `std`."""
        return jnp.sqrt(1 - self.std(t) ** 2) if self.told == "fractional_level" else self.sde.alpha(t)

    def score(self, x: Image, t: PerImage) -> Image:
        """grad log p_t(x) for x [b, h, w, c] at SDE times t [b]; 1 network call."""
        output = self.output_at(x, t)
        if self.predicts == "score":
            return output
        if self.predicts == "eps":
            return -output / self.std(t)[:, None, None, None]
        alpha, sigma = (value(t)[:, None, None, None] for value in (self.signal, self.std))
        _, eps = sde_lib.x0_and_eps(self.predicts, output, x, alpha, sigma)
        return -eps / sigma

    def denoise(self, y: Image, s: PerImage | Scalar | float) -> Image:
        """E[x0 | y] for y = x0 + s eps, [b, h, w, c]; s is a scalar or [b]. 1 network call."""
        s = jnp.broadcast_to(s, y.shape[:1])
        t = self.sde.time(s)
        alpha, sigma = (value(t)[:, None, None, None] for value in (self.sde.alpha, self.sde.sigma))
        x = alpha * y
        output = self.output_at(x, t)
        return sde_lib.x0_and_eps(self.predicts, output, x, alpha, sigma)[0]

    def __call__(self, y: Image, s: PerImage | Scalar | float) -> Image:
        """`denoise`: the face the deterministic engine calls."""
        return self.denoise(y, s)


def told(sde: GaussianSDE, continuous: bool) -> str:
    """What the training conventions of score_sde, and of ADM on its chain, tell a network of the noise level."""
    if isinstance(sde, sde_lib.DiscreteVPSDE):
        return "index"
    if isinstance(sde, sde_lib.EDMSDE):
        return "sigma"
    if isinstance(sde, sde_lib.VESDE):
        return "sigma" if continuous else "level"
    return "999t" if continuous or not isinstance(sde, sde_lib.VPSDE) else "fractional_level"
