"""What a preconditioned predictor does to variances, predicted before any network is called. Float64 NumPy.

Follow one mode: data variance v, so that the noisy marginal has V = alpha^2 v + sigma^2 and the exact score is -x/V,
and multiplier m, where lambda = m^2 is an eigenvalue of M M^T. A reverse-diffusion step multiplies x by a factor and
adds noise of variance m^2 G^2, so the variance obeys P <- factor^2 P + m^2 G^2. With f the forward factor of a level,

  paper           factor = 1 - m^2 (f - 1 + G^2 / V)              starts from m^2 sigma^2
  marginal        factor = 1 - (f - 1) - (1 + m^2) G^2 / (2 V)    starts from sigma^2
  corrector_only  the marginal one with m = 1.

For v -> 0 on geometric levels (VE) with q = 1 - sigma_below^2 / sigma^2 the ratio P / sigma^2 in paper mode tends to
m^2 q / (1 - q - (1 - m^2 q)^2), and diverges when |1 - m^2 q| > sqrt(1 - q). Setting the ratio to 1 gives the filter
that just undoes the variance inflation of large steps: `automatic_alpha`. Derived here and tested against simulation;
correctors, which reduce all these errors, are left out.
"""

from typing import Literal, Protocol, runtime_checkable

import numpy as np

from array_types import Table
from precond.base import Preconditioner
from precond.fourier import FourierPreconditioner, FrequencyPreconditioner, SpacePreconditioner
from precond.skew import Skewed

Mode = Literal["paper", "marginal", "corrector_only"]
SMOOTHS = 0.95  # noise_ratio below which images visibly lose detail: on the demo 0.90 does (docs/results.md)


@runtime_checkable
class Levels(Protocol):
    """The columns of `sde_lib.Levels` that matter here, in the order visited."""

    @property
    def forward(self) -> Table: ...
    @property
    def variance(self) -> Table: ...
    @property
    def sigma(self) -> Table: ...


def _factors(levels: Levels, mode: Mode, eigenvalue: float, marginal_variance: Table) -> Table:
    pull = levels.variance / marginal_variance
    if mode == "paper":
        return 1 - eigenvalue * (levels.forward - 1 + pull)
    return 2 - levels.forward - (1 + eigenvalue) / 2 * pull


def _predictor_eigenvalue(mode: Mode, eigenvalue: float) -> float:
    return 1.0 if mode == "corrector_only" else eigenvalue


def _arrival(levels: Levels, mode: Mode, eigenvalue: float, factors: Table) -> float:
    """A mode's variance when it arrives at the lowest level, before the last step."""
    current = (eigenvalue if mode == "paper" else 1.0) * levels.sigma[0] ** 2
    for factor, added in zip(factors[:-1], levels.variance[:-1], strict=True):
        current = factor**2 * current + eigenvalue * added
    return current


def variance_ratio(levels: Levels, mode: Mode, eigenvalue: float, data_variance: float) -> float:
    """Variance of a mode at the end (mean of the last step), relative to its variance in the data; 1 is right."""
    eigenvalue = _predictor_eigenvalue(mode, eigenvalue)
    # A level's alpha is the product of the forward steps into it from the data up.
    alpha = np.cumprod(levels.forward[::-1])[::-1]
    factors = _factors(levels, mode, eigenvalue, alpha**2 * data_variance + levels.sigma**2)
    return float(factors[-1] ** 2 * _arrival(levels, mode, eigenvalue, factors) / data_variance)


def noise_ratio(levels: Levels, mode: Mode, eigenvalue: float) -> float:
    """Variance of a mode without data (v -> 0) on arrival at the lowest level, relative to that level's sigma^2."""
    eigenvalue = _predictor_eigenvalue(mode, eigenvalue)
    factors = _factors(levels, mode, eigenvalue, levels.sigma**2)
    return float(_arrival(levels, mode, eigenvalue, factors) / levels.sigma[-1] ** 2)


def growth(levels: Levels, mode: Mode, eigenvalue: float) -> float:
    """Geometric mean over the levels of how much a step multiplies errors, relative to sigma. Above 1 they blow up.

    On geometric levels this is |1 - lambda q| / sqrt(1 - q), with (1 + lambda) / 2 in place of lambda in marginal mode.
    """
    factors = _factors(levels, mode, _predictor_eigenvalue(mode, eigenvalue), levels.sigma**2)
    # The last step goes to the image, where sigma is 0 and nothing is amplified afterwards.
    amplification = np.abs(factors[:-1]) * levels.sigma[:-1] / levels.sigma[1:]
    return float(np.exp(np.mean(np.log(np.maximum(amplification, 1e-300)))))


def stability_warning(levels: Levels, mode: Mode, preconditioner: Preconditioner) -> str | None:
    """A sentence to print before sampling if the predictor's errors grow level by level, or if it takes away so much
    noise that a network, which is told of more, smooths the images; else None.

    Only paper mode smooths: where marginal mode is stable its ratio is lambda / (lambda - (1 + lambda)^2 q / 4) > 1.
    """
    eigenvalue = largest_eigenvalue(preconditioner)
    ratio = noise_ratio(levels, mode, eigenvalue)
    if growth(levels, mode, eigenvalue) > 1:
        return (
            f"Unstable: {len(levels.sigma)} levels are too few for filters this strong (pds_mode {mode}, largest "
            f"eigenvalue {eigenvalue:.2f}); the noise of the weakest modes ends {ratio:.3g} times too large "
            f"({noise_ratio(levels, mode, 1.0):.3g} without filters). "
            "Raise --alpha, lower --speed_up, or set --config.sampling.pds_mode=corrector_only."
        )
    if ratio < SMOOTHS:
        return (
            f"Smooths: with {len(levels.sigma)} levels filters this strong (largest eigenvalue {eigenvalue:.2f}) leave "
            f"the weakest modes {ratio:.2f} of the noise that the network is told of (pds_mode {mode}): it takes "
            "detail for noise. Raise --alpha (on VE levels --alpha=auto balances it), raise --speed_up, or set "
            "--config.sampling.pds_mode=marginal."
        )
    return None


def largest_eigenvalue(preconditioner: Preconditioner) -> float:
    """lambda_max(M M^T): exact with at most one mask; by power iteration (to about 1e-3, from below) with both."""
    match preconditioner:
        case Skewed(preconditioner=inner):
            return largest_eigenvalue(inner)
        case FrequencyPreconditioner(diagonal) | SpacePreconditioner(diagonal):
            return float(np.max(np.asarray(diagonal, np.float64)) ** 2)
        case FourierPreconditioner(freq, space):
            return _power_iteration(np.asarray(freq, np.float64), np.asarray(space, np.float64))
    return 1.0


def _power_iteration(freq: np.ndarray, space: np.ndarray, tolerance: float = 1e-4, limit: int = 100) -> float:
    half = freq[:, : freq.shape[1] // 2 + 1]

    def smooth(x):
        return np.fft.irfft2(half * np.fft.rfft2(x, axes=(0, 1)), s=x.shape[:2], axes=(0, 1))

    x, previous = np.random.default_rng(0).normal(size=space.shape), 0.0
    for _ in range(limit):
        x /= np.linalg.norm(x)
        image = smooth(space**2 * smooth(x))
        eigenvalue = float(np.vdot(x, image))
        if abs(eigenvalue - previous) < tolerance * eigenvalue:
            break
        x, previous = image, eigenvalue
    return eigenvalue


def automatic_alpha(levels: Levels, mode: Mode) -> float:
    """The alpha whose strongest multiplier m = alpha / (alpha - 1) undoes the variance inflation of steps this large.

    With q as above, m^2 = (1 - sqrt(1 - 4 q)) / (2 q) makes the ratio exactly 1 for q <= 1/4; beyond that no m does,
    and m^2 = 1 / sqrt(q) makes it smallest. More levels mean a larger alpha, a weaker filter. Strong modes and
    correctors are left out of the account.

    Raises ValueError unless mode is "paper" and the levels are geometric, as those of VE are.
    """
    if mode != "paper":
        raise ValueError(
            "--alpha=auto balances the paper mode's variance error against that of large steps; config.sampling."
            f"pds_mode={mode!r} has no such error to balance. Give --alpha a number, such as 5."
        )
    q = 1 - (levels.sigma[1:] / levels.sigma[:-1]) ** 2
    if np.ptp(q) > 1e-6:
        raise ValueError(
            "--alpha=auto needs the geometric noise levels of config.sde.name='vesde'; give --alpha a number, as 5."
        )
    q = float(q.mean())
    m = np.sqrt((1 - np.sqrt(1 - 4 * q)) / (2 * q) if q <= 0.25 else 1 / np.sqrt(q))
    return float(m / (m - 1))
