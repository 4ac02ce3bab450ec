"""EDM's network scalings (Karras et al. 2022, table 1): c_skip, c_out, c_in around any network, and what it is told.

Each turns a network F into a denoiser D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) of noisy images x0 + sigma eps,
x0 in [-1, 1]. The four of EDM's pickles cover the families: EDM's own, VP (DDPM++), VE (NCSN++) and iDDPM (ADM).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, OtherChannels, PerImage, Table

Network = Callable[..., OtherChannels]  # (params, x [b, h, w, c], labels [b], **conditions)
LABELS = ("sigma", "c_noise", "1000c_noise")


class Coefficients(NamedTuple):
    """At noise scales [b]: each [b]."""

    c_skip: Any
    c_out: Any
    c_in: Any
    c_noise: Any


@runtime_checkable
class Scaling(Protocol):
    """Coefficients at any noise scales (an array of NumPy or JAX), and the noise scales the network was made for."""

    def __call__(self, sigma: Any) -> Coefficients: ...
    def range(self) -> tuple[float, float]: ...  # lowest and highest noise scale
    def round(self, sigma: Table) -> Table: ...  # to the nearest one the network knows


class _Continuous:
    def round(self, sigma: Table) -> Table:
        return sigma


def _xp(sigma: Any):
    return jnp if isinstance(sigma, jax.Array) else np


@dataclasses.dataclass(frozen=True)
class EDMScaling(_Continuous):
    """Input and target of F have unit variance at every noise level, for data of standard deviation sigma_data."""

    sigma_data: float = 0.5

    def __call__(self, sigma: Any) -> Coefficients:
        xp, scale = _xp(sigma), _xp(sigma).sqrt(sigma**2 + self.sigma_data**2)
        return Coefficients(
            (self.sigma_data / scale) ** 2, sigma * self.sigma_data / scale, 1 / scale, xp.log(sigma) / 4
        )

    def range(self) -> tuple[float, float]:
        return 0.0, float("inf")


@dataclasses.dataclass(frozen=True)
class VPScaling(_Continuous):
    """F predicts the noise of a VP process and is told (levels - 1) t: `sde_lib.VPSDE` seen from y = x/alpha."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    levels: int = 1000
    end_time: float = 1e-5

    def __call__(self, sigma: Any) -> Coefficients:
        xp, slope = _xp(sigma), self.beta_max - self.beta_min
        integral = xp.log1p(sigma**2)
        t = 2 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2 * slope * integral))
        one = xp.ones_like(sigma)
        return Coefficients(one, -sigma, 1 / xp.sqrt(sigma**2 + 1), (self.levels - 1) * t)

    def range(self) -> tuple[float, float]:
        low, high = (
            float(np.sqrt(np.expm1(0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t)))
            for t in (self.end_time, 1.0)
        )
        return low, high


@dataclasses.dataclass(frozen=True)
class VEScaling(_Continuous):
    """F predicts minus the noise and is told log(sigma/2); published for sigma from 0.02 to 100."""

    def __call__(self, sigma: Any) -> Coefficients:
        one = _xp(sigma).ones_like(sigma)
        return Coefficients(one, sigma, one, _xp(sigma).log(0.5 * sigma))

    def range(self) -> tuple[float, float]:
        return 0.02, 100.0


@dataclasses.dataclass(frozen=True)
class IDDPMScaling:
    """F predicts the noise of iDDPM's cosine schedule, in the first half of its channels, and is told an index.

    The noise scales u_0 > ... > u_levels = 0 follow from u_{j-1} = sqrt((u_j^2 + 1)/max(a_{j-1}/a_j, c_1) - 1) with
    a_j = sin^2(pi/2 j/(levels (c_2 + 1))); the index counts them upwards from the smallest, so that of 0 is -1.
    """

    c_1: float = 0.001
    c_2: float = 0.008
    levels: int = 1000

    def __call__(self, sigma: Any) -> Coefficients:
        xp = _xp(sigma)
        index = xp.abs(sigma[..., None] - xp.asarray(self.table, sigma.dtype)[(None,) * sigma.ndim]).argmin(-1)
        c_noise = (self.levels - 1 - index).astype(sigma.dtype)
        return Coefficients(xp.ones_like(sigma), -sigma, 1 / xp.sqrt(sigma**2 + 1), c_noise)

    @functools.cached_property
    def table(self) -> Table:
        """u_0 to u_levels, [levels + 1], float64."""
        j = np.arange(self.levels + 1)
        a = np.sin(0.5 * np.pi * j / (self.levels * (self.c_2 + 1))) ** 2
        u = np.zeros(self.levels + 1)
        for k in range(self.levels, 0, -1):
            u[k - 1] = np.sqrt((u[k] ** 2 + 1) / max(a[k - 1] / a[k], self.c_1) - 1)
        return u

    def range(self) -> tuple[float, float]:
        return float(self.table[-2]), float(self.table[0])

    def round(self, sigma: Table) -> Table:
        nearest = np.abs(np.asarray(sigma)[..., None] - self.table).argmin(-1)
        return self.table[nearest]


SCALINGS: dict[str, Any] = {"edm": EDMScaling, "vp": VPScaling, "ve": VEScaling, "iddpm": IDDPMScaling}


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A network wrapped so that it predicts x0 and is told the noise scale; 1 network call.

    Attributes:
      network: F, `(params, x [b, h, w, c], labels [b], **conditions)`; more channels than x's are left out.
      scaling: its coefficients.
      centered: the data range of x is [-1, 1]; else it is [0, 1] and is mapped there, noise scale included.
      label: what F is told: "sigma" (NCSN++ here, which takes the logarithm itself), "c_noise" (EDM's networks) or
        "1000c_noise" (ADM networks trained under EDM's scaling).
    """

    network: Network
    scaling: Scaling = EDMScaling()
    centered: bool = True
    label: str = "sigma"

    def __post_init__(self):
        if self.label not in LABELS:
            raise ValueError(f"config.model.scaling_label={self.label!r} is unknown; choose one of {LABELS}.")

    def __call__(self, params: Any, x: Image, sigma: PerImage, **conditions: Any) -> Image:
        x, sigma = (x, sigma) if self.centered else (2 * x - 1, 2 * sigma)
        at = self.scaling(sigma)
        label = {"sigma": sigma, "c_noise": at.c_noise, "1000c_noise": 1000 * at.c_noise}[self.label]
        c_skip, c_out, c_in = (value[:, None, None, None] for value in at[:3])
        output = self.network(params, c_in * x, label, **conditions)[..., : x.shape[-1]]
        x0 = c_skip * x + c_out * output
        return x0 if self.centered else (x0 + 1) / 2

    def round(self, s: Table) -> Table:
        """Noise scales in units of the data range, each moved to the nearest one that the network knows."""
        unit = 1 if self.centered else 2
        return self.scaling.round(unit * s) / unit
