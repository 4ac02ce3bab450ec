"""Forward processes, their closed-form marginals, and the conversions between what networks predict.

Every process here is linear: x(t) | x(0) ~ N(alpha(t) x(0), sigma(t)^2 I) for SDE time t in [0, 1], with
dx = f(t) x dt + g(t) dw (Song et al. 2021, "Score-based generative modeling through SDEs"). Two quantities follow from
alpha and sigma alone and carry the rest of the toolkit:

* the noise scale s = sigma/alpha, increasing in t: y = x/alpha is the variance-exploding view of any process;
* lam = log(alpha/sigma) = -log s.

A network predicts score, eps, x0, v, or both x0 and eps; `x0_and_eps` and `predict` convert. All functions accept a
float64 NumPy array (tables, made before compilation) or a JAX array (inside jit) and answer in kind.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Table


def _xp(t: Any):
    """NumPy (float64) for host values, JAX for traced or device ones."""
    return jnp if isinstance(t, jax.Array) else np


class Levels(NamedTuple):
    """The n noise levels of a predictor-corrector sampler in the order they are visited, float64.

    A forward step from the level below is x_k = forward x_{k-1} + sqrt(variance) z, so the reverse-diffusion step is
    x - (forward - 1) x + variance * score.
    """

    t: Table  # SDE time at which the score is evaluated, decreasing
    forward: Table  # factor of the forward step into this level
    variance: Table  # G_k^2, the variance that step adds
    sigma: Table  # marginal std at this level
    sigma_below: Table  # marginal std at the next visited level; 0 at the end
    drift: Table  # f(t)
    diffusion_squared: Table  # g(t)^2
    langevin_alpha: Table  # alpha_k in the Langevin step size (1 for VE)


@runtime_checkable
class GaussianSDE(Protocol):
    """What the samplers need to know of a process. `t` is SDE time in [0, 1]; `s` is the noise scale sigma/alpha."""

    @property
    def num_scales(self) -> int: ...  # levels of the training grid, and of the sampler at speed_up 1
    @property
    def end_time(self) -> float: ...  # where the published samplers stop at speed_up 1
    @property
    def prior_sigma(self) -> float: ...

    def alpha(self, t: Any) -> Any: ...
    def sigma(self, t: Any) -> Any: ...
    def noise_scale(self, t: Any) -> Any: ...
    def time(self, s: Any) -> Any: ...
    def drift(self, t: Any) -> Any: ...
    def diffusion_squared(self, t: Any) -> Any: ...
    def levels(self, n: int, end_time: float, published: bool = False) -> Levels: ...


def _check_scales(name: str, num_scales: int) -> None:
    if num_scales < 2:
        raise ValueError(f"{name} needs num_scales >= 2, got {num_scales}; set config.sde.num_scales.")


def _check_levels(n: int, num_scales: int) -> None:
    if n < 2:
        raise ValueError(
            f"{n} noise levels: a sampler needs at least 2. Lower --speed_up to at most "
            f"num_scales/2 = {num_scales / 2:g}."
        )


def _exact_levels(sde: GaussianSDE, times: Table) -> Levels:
    """Levels at `times` whose forward steps are the exact transitions of the process; the last step goes to t = 0."""
    below = np.append(times[1:], 0.0)
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    alpha_below, sigma_below = sde.alpha(below), sde.sigma(below)
    # The image itself has no noise. VE keeps sigma(0) = sigma_min, which belongs to the lowest level, not to the image.
    alpha_below[-1], sigma_below[-1] = 1.0, 0.0
    forward = alpha / alpha_below
    return Levels(
        t=times,
        forward=forward,
        variance=sigma**2 - (forward * sigma_below) ** 2,
        sigma=sigma,
        sigma_below=sigma_below,
        drift=sde.drift(times),
        diffusion_squared=sde.diffusion_squared(times),
        langevin_alpha=forward**2,
    )


@dataclasses.dataclass(frozen=True)
class VESDE:
    """Variance exploding: sigma(t) = sigma_min (sigma_max/sigma_min)^t, alpha = 1 (Song et al. 2021, appendix C).

    Used on images in [0, 1] (`config.data.centered = False`). sigma(0) is sigma_min, not 0.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    end_time: float = 1e-5

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"VESDE needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}; "
                "set config.sde.sigma_min and config.sde.sigma_max."
            )
        _check_scales("VESDE", self.num_scales)

    @property
    def prior_sigma(self) -> float:
        return self.sigma_max

    def alpha(self, t):
        return _xp(t).ones_like(t, dtype=None if isinstance(t, jax.Array) else float)

    def sigma(self, t):
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def noise_scale(self, t):
        return self.sigma(t)

    def time(self, s):
        return _xp(s).log(s / self.sigma_min) / np.log(self.sigma_max / self.sigma_min)

    def drift(self, t):
        return 0.0 * t

    def diffusion_squared(self, t):
        return self.sigma(t) ** 2 * (2 * np.log(self.sigma_max / self.sigma_min))

    def discrete_sigmas(self, n: int | None = None) -> Table:
        """The geometric ladder of n levels, ascending; n = num_scales is the training ladder of discrete models."""
        return np.geomspace(self.sigma_min, self.sigma_max, n or self.num_scales)

    def levels(self, n: int, end_time: float, published: bool = False) -> Levels:
        """n levels from sigma_max down. `published` evaluates the score at linspace(1, end_time, n), a little off the
        ladder that sets the step sizes, as score_sde and PDS do; otherwise both sit on the ladder (end_time unused)."""
        _check_levels(n, self.num_scales)
        exact = _exact_levels(self, np.linspace(1, 0, n))
        if not published:
            return exact
        times = np.linspace(1, end_time, n)
        return exact._replace(t=times, diffusion_squared=self.diffusion_squared(times))


class _LinearBeta:
    """What VP and sub-VP share: beta(t) = beta_min + t (beta_max - beta_min), alpha(t) = exp(-1/2 integral of beta)."""

    beta_min: float
    beta_max: float
    num_scales: int

    def __post_init__(self):
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"{type(self).__name__} needs 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}; "
                "set config.sde.beta_min and config.sde.beta_max."
            )
        _check_scales(type(self).__name__, self.num_scales)

    @property
    def prior_sigma(self) -> float:
        return 1.0

    def sigma(self, t):
        raise NotImplementedError(f"{type(self).__name__} defines sigma.")

    def beta(self, t):
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def beta_integral(self, t):
        return 0.5 * t**2 * (self.beta_max - self.beta_min) + t * self.beta_min

    def _time_of_integral(self, integral):
        # The root of the quadratic, written without the cancellation of the school formula at small t.
        xp = _xp(integral)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def alpha(self, t):
        return _xp(t).exp(-0.5 * self.beta_integral(t))

    def noise_scale(self, t):
        return self.sigma(t) / self.alpha(t)

    def drift(self, t):
        return -0.5 * self.beta(t)

    def _check_steps(self, n: int) -> None:
        _check_levels(n, self.num_scales)
        if n < self.beta_max:
            raise ValueError(
                f"{n} noise levels make beta = {self.beta_max / n:.2f} > 1 at the first step, which has no meaning. "
                f"Lower --speed_up so that num_scales/speed_up >= {self.beta_max:g} (num_scales is {self.num_scales}), "
                "or leave --config.sampling.pds_mode=paper."
            )


@dataclasses.dataclass(frozen=True)
class VPSDE(_LinearBeta):
    """Variance preserving: f = -beta(t)/2, g^2 = beta(t), alpha^2 + sigma^2 = 1 (Song et al. 2021, eq. 11).

    Used on images in [-1, 1] (`config.data.centered = True`).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    num_scales: int = 1000
    end_time: float = 1e-3

    def sigma(self, t):
        return _xp(t).sqrt(-_xp(t).expm1(-self.beta_integral(t)))

    def time(self, s):
        return self._time_of_integral(_xp(s).log1p(s**2))

    def diffusion_squared(self, t):
        return self.beta(t)

    def discrete_betas(self, n: int | None = None) -> Table:
        """DDPM's n betas, ascending; their cumulative products are the marginals of discrete models."""
        n = n or self.num_scales
        return np.linspace(self.beta_min / n, self.beta_max / n, n)

    def levels(self, n: int, end_time: float, published: bool = False) -> Levels:
        """n levels at linspace(1, end_time, n). `published` steps by DDPM's betas; otherwise by exact transitions."""
        if not published:
            _check_levels(n, self.num_scales)
            return _exact_levels(self, np.linspace(1, end_time, n))
        self._check_steps(n)
        times, betas = np.linspace(1, end_time, n), self.discrete_betas(n)
        sigma = np.sqrt(1 - np.cumprod(1 - betas))
        return Levels(
            t=times,
            forward=np.sqrt(1 - betas)[::-1],
            variance=betas[::-1],
            sigma=sigma[::-1],
            sigma_below=np.append(sigma[-2::-1], 0.0),
            drift=self.drift(times),
            diffusion_squared=self.diffusion_squared(times),
            langevin_alpha=(1 - betas)[::-1],
        )


@dataclasses.dataclass(frozen=True)
class SubVPSDE(_LinearBeta):
    """Sub-VP: as VP with g^2 = beta (1 - alpha^4), so sigma = 1 - alpha^2 (Song et al. 2021, section 3.4).

    Used on images in [-1, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    num_scales: int = 1000
    end_time: float = 1e-3

    def sigma(self, t):
        return -_xp(t).expm1(-self.beta_integral(t))

    def time(self, s):
        # s = 1/alpha - alpha = 2 sinh(integral / 2).
        return self._time_of_integral(2 * _xp(s).arcsinh(s / 2))

    def diffusion_squared(self, t):
        return -self.beta(t) * _xp(t).expm1(-2 * self.beta_integral(t))

    def levels(self, n: int, end_time: float, published: bool = False) -> Levels:
        """n levels at linspace(1, end_time, n). `published` takes Euler-Maruyama steps of 1/n; otherwise exact ones."""
        if not published:
            _check_levels(n, self.num_scales)
            return _exact_levels(self, np.linspace(1, end_time, n))
        self._check_steps(n)
        times = np.linspace(1, end_time, n)
        sigma = self.sigma(times)
        return Levels(
            t=times,
            forward=1 + self.drift(times) / n,
            variance=self.diffusion_squared(times) / n,
            sigma=sigma,
            sigma_below=np.append(sigma[1:], 0.0),
            drift=self.drift(times),
            diffusion_squared=self.diffusion_squared(times),
            # The published classes have no alphas for sub-VP and crash under Langevin correction.
            langevin_alpha=1 - self.beta(times) / n,
        )


@dataclasses.dataclass(frozen=True)
class CosineVPSDE:
    """Cosine VP: alpha = cos(a t + b), sigma = sin(a t + b), with log-SNR running from logsnr_max to logsnr_min.

    logsnr(t) = -2 log tan(a t + b) (Salimans and Ho 2022, "Progressive distillation", appendix B). Images in [-1, 1].
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    num_scales: int = 1000
    end_time: float = 1e-3

    def __post_init__(self):
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(
                f"CosineVPSDE needs logsnr_min < logsnr_max, got {self.logsnr_min} and {self.logsnr_max}; "
                "set config.sde.logsnr_min and config.sde.logsnr_max."
            )
        _check_scales("CosineVPSDE", self.num_scales)

    @property
    def prior_sigma(self) -> float:
        return 1.0

    @property
    def _offset(self) -> float:
        return float(np.arctan(np.exp(-0.5 * self.logsnr_max)))

    @property
    def _slope(self) -> float:
        return float(np.arctan(np.exp(-0.5 * self.logsnr_min))) - self._offset

    def _angle(self, t):
        return self._slope * t + self._offset

    def alpha(self, t):
        return _xp(t).cos(self._angle(t))

    def sigma(self, t):
        return _xp(t).sin(self._angle(t))

    def noise_scale(self, t):
        return _xp(t).tan(self._angle(t))

    def time(self, s):
        return (_xp(s).arctan(s) - self._offset) / self._slope

    def drift(self, t):
        return -self._slope * self.noise_scale(t)

    def diffusion_squared(self, t):
        return 2 * self._slope * self.noise_scale(t)

    def levels(self, n: int, end_time: float, published: bool = False) -> Levels:
        """n levels at linspace(1, end_time, n) with exact transitions; no published sampler exists to reproduce."""
        _check_levels(n, self.num_scales)
        return _exact_levels(self, np.linspace(1, end_time, n))


@dataclasses.dataclass(frozen=True)
class EDMSDE:
    """Variance exploding on EDM's clock: sigma(t)^(1/rho) is linear in t, alpha = 1 (Karras et al. 2022).

    Levels even in t are EDM's noise scales; rho = 1 makes t itself a linear noise scale. Used on images in [-1, 1].
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    num_scales: int = 1000
    end_time: float = 0.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise ValueError(
                f"EDMSDE needs 0 < sigma_min < sigma_max and rho > 0, got {self.sigma_min}, {self.sigma_max} and "
                f"{self.rho}; set config.sde.sigma_min, sigma_max and rho."
            )
        _check_scales("EDMSDE", self.num_scales)

    @property
    def prior_sigma(self) -> float:
        return self.sigma_max

    @property
    def _slope(self) -> float:
        return self.sigma_max ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)

    def _root(self, t):
        return self.sigma_min ** (1 / self.rho) + self._slope * t

    def alpha(self, t):
        return _xp(t).ones_like(t, dtype=None if isinstance(t, jax.Array) else float)

    def sigma(self, t):
        return self._root(t) ** self.rho

    def noise_scale(self, t):
        return self.sigma(t)

    def time(self, s):
        return (s ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)) / self._slope

    def drift(self, t):
        return 0.0 * t

    def diffusion_squared(self, t):
        return 2 * self.rho * self._slope * self._root(t) ** (2 * self.rho - 1)

    def levels(self, n: int, end_time: float, published: bool = False) -> Levels:
        """n levels at linspace(1, 0, n) with exact transitions; no published Langevin sampler exists to reproduce."""
        _check_levels(n, self.num_scales)
        return _exact_levels(self, np.linspace(1, 0, n))


BETA_SCHEDULES = ("linear", "scaled_linear", "cosine")


@dataclasses.dataclass(frozen=True)
class DiscreteVPSDE:
    """The chain of DDPM and ADM, x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z, made continuous through its levels.

    t = i/(num_scales - 1) is level i; between two levels log s is linear in t, so that the levels, which are all the
    network was trained on, are met exactly. The lowest has s = 0.01 (linear); time(s) of smaller s is 0.

    Schedules of num_scales = T betas: "linear", evenly from beta_min/T to beta_max/T (Ho et al. 2020);
    "scaled_linear", the same for their square roots (latent diffusion); "cosine", from abar(u) =
    cos^2(pi/2 (u + 0.008)/1.008), no beta above 0.999 (Nichol and Dhariwal 2021). Used on images in [-1, 1].
    """

    schedule: str = "linear"
    beta_min: float = 0.1
    beta_max: float = 20.0
    num_scales: int = 1000
    end_time: float = 0.0

    def __post_init__(self):
        if self.schedule not in BETA_SCHEDULES:
            raise ValueError(f"config.sde.schedule={self.schedule!r} is unknown; choose one of {BETA_SCHEDULES}.")
        _check_scales("DiscreteVPSDE", self.num_scales)
        if not 0 < self.beta_min < self.beta_max <= self.num_scales:
            raise ValueError(
                f"DiscreteVPSDE needs 0 < beta_min < beta_max <= num_scales, got {self.beta_min}, {self.beta_max} and "
                f"{self.num_scales}; set config.sde.beta_min, beta_max and num_scales."
            )

    @property
    def prior_sigma(self) -> float:
        return 1.0

    def discrete_betas(self) -> Table:
        """The chain's betas, ascending."""
        n = self.num_scales
        if self.schedule == "cosine":
            abar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - abar[1:] / abar[:-1], 0.999)
        power = 2 if self.schedule == "scaled_linear" else 1
        return np.linspace((self.beta_min / n) ** (1 / power), (self.beta_max / n) ** (1 / power), n) ** power

    @functools.cached_property
    def _log_s(self) -> Table:
        """log s at every level, ascending."""
        return 0.5 * np.log(np.expm1(-np.cumsum(np.log1p(-self.discrete_betas()))))

    def index(self, t):
        """The level at t, a fraction between two; a whole one exactly, where float32 would leave 1e-4 of rounding."""
        index = t * (self.num_scales - 1)
        whole = _xp(t).round(index)
        return _xp(t).where(abs(index - whole) < 5e-4, whole, index)

    def noise_scale(self, t):
        xp = _xp(t)
        levels = xp.linspace(0, 1, self.num_scales)
        return xp.exp(xp.interp(t, levels, xp.asarray(self._log_s)))

    def time(self, s):
        xp = _xp(s)
        levels = xp.linspace(0, 1, self.num_scales)
        return xp.interp(xp.log(xp.maximum(s, 1e-30)), xp.asarray(self._log_s), levels)

    def alpha(self, t):
        return 1 / _xp(t).sqrt(1 + self.noise_scale(t) ** 2)

    def sigma(self, t):
        return self.noise_scale(t) * self.alpha(t)

    def _rate(self, t):
        """d log s/dt, constant between two levels."""
        xp, last = _xp(t), self.num_scales - 1
        below = xp.clip(xp.floor(t * last), 0, last - 1).astype(int)
        return xp.asarray(np.diff(self._log_s) * last)[below]

    def drift(self, t):
        return -self._rate(t) * self.sigma(t) ** 2

    def diffusion_squared(self, t):
        return 2 * self._rate(t) * self.sigma(t) ** 2

    def levels(self, n: int, end_time: float, published: bool = False) -> Levels:
        """n levels at linspace(1, 0, n), exact transitions: those of the respaced chain where they are whole levels."""
        _check_levels(n, self.num_scales)
        return _exact_levels(self, np.linspace(1, 0, n))


SDES: dict[str, Any] = {
    "vesde": VESDE,
    "vpsde": VPSDE,
    "subvpsde": SubVPSDE,
    "cosinevpsde": CosineVPSDE,
    "edmsde": EDMSDE,
    "discretevpsde": DiscreteVPSDE,
}
PREDICTIONS = ("score", "eps", "x0", "v", "both")


def create_sde(name: str, **settings) -> GaussianSDE:
    """The process named by config.sde.name. Raises ValueError for an unknown name or a setting it does not have."""
    if name not in SDES:
        raise ValueError(f"config.sde.name={name!r} is unknown; choose one of {sorted(SDES)}.")
    fields = {field.name for field in dataclasses.fields(SDES[name])}
    return SDES[name](**{key: value for key, value in settings.items() if key in fields})


def x0_and_eps(kind: str, output, x, alpha, sigma):
    """What a network's `output` of this kind says about the image x0 and the noise eps in x = alpha x0 + sigma eps.

    Args:
      kind: "score" (grad log p_t), "eps", "x0", "v" = alpha eps - sigma x0, or "both": x0 and eps side by side in the
        channels, the first trusted at high noise and the second at low (Salimans and Ho 2022).
      output, x: arrays of one shape, but for "both", whose output [..., 2c] has twice the channels of x; alpha, sigma
        broadcast against x.

    Each is computed directly from `output`, not from the other, so that neither suffers cancellation at small noise.
    """
    if kind == "score":
        return (x + sigma**2 * output) / alpha, -sigma * output
    if kind == "eps":
        return (x - sigma * output) / alpha, output
    if kind == "x0":
        return output, (x - alpha * output) / sigma
    if kind == "v":
        norm = alpha**2 + sigma**2  # 1 for VP
        return (alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm
    if kind == "both":
        # (sigma^2 x0 + alpha (x - sigma eps)) / norm, as they combine the halves, is the x0 of the v of the halves.
        x0, eps = output[..., : x.shape[-1]], output[..., x.shape[-1] :]
        return x0_and_eps("v", alpha * eps - sigma * x0, x, alpha, sigma)
    raise ValueError(f"prediction {kind!r} is unknown; choose one of {PREDICTIONS}.")


def predict(kind: str, x0, eps, alpha, sigma):
    """The inverse of `x0_and_eps`: what a perfect network of this kind puts out for image x0 and noise eps."""
    if kind == "score":
        return -eps / sigma
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "both":
        return _xp(eps).concatenate([x0, eps], axis=-1)
    raise ValueError(f"prediction {kind!r} is unknown; choose one of {PREDICTIONS}.")
