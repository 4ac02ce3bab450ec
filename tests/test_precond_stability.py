"""Predicted variances: against the real sampler updates, against independent figures, and their limits."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import sde_lib
from precond import stability
from precond.base import Identity
from precond.fourier import FourierPreconditioner, FrequencyPreconditioner, SpacePreconditioner
from precond.skew import Shift, Skewed


def ve_levels(count, sigma_max=1348.0):
    return sde_lib.VESDE(0.01, sigma_max, 2000).levels(count, 1e-5)


@pytest.mark.parametrize(
    "count, mode, m, expected",  # figures of a separate simulation, for data variances 1, 0.01 and 0.001
    [
        (66, "paper", 1.0, (1.21, 1.20, 1.11)),
        (66, "paper", 1.25, (0.84, 0.83, 0.70)),
        (66, "marginal", 1.25, (1.17, 1.15, 1.02)),
        (66, "corrector_only", 1.25, (1.21, 1.20, 1.11)),
        (200, "paper", 1.25, (0.77, 0.75, 0.63)),
        (200, "marginal", 1.25, (1.05, 1.04, 0.91)),
        (2000, "paper", 1.0, (1.01, 1.00, 0.92)),
        (2000, "paper", 1.25, (0.74, 0.72, 0.60)),
        (2000, "marginal", 1.25, (1.00, 0.99, 0.86)),
    ],
)
def test_final_variances_match_an_independent_simulation(count, mode, m, expected):
    ratios = [stability.variance_ratio(ve_levels(count), mode, m**2, v) for v in (1.0, 0.01, 0.001)]
    np.testing.assert_allclose(ratios, expected, atol=0.0055)  # given to two decimals


@pytest.mark.parametrize("mode", ["paper", "marginal", "corrector_only"])
@pytest.mark.parametrize(
    "sde", [sde_lib.VESDE(), sde_lib.VPSDE(), sde_lib.SubVPSDE()], ids=lambda sde: type(sde).__name__
)
def test_the_recursion_is_the_variance_of_the_sampler_s_own_update(sde, mode):
    # Follow one mode's linear map and its accumulated noise exactly, step by step, as the update formulas are written.
    levels, eigenvalue, v = sde.levels(40, 1e-3, published=True), 1.7, 0.3
    m = 1.0 if mode == "corrector_only" else np.sqrt(eigenvalue)
    weights = np.array([levels.sigma[0] * (m if mode == "paper" else 1.0)])  # of each standard normal drawn so far
    alpha = np.cumprod(levels.forward[::-1])[::-1]
    for forward, variance, a, sigma in zip(levels.forward, levels.variance, alpha, levels.sigma, strict=True):
        score = -weights / (a**2 * v + sigma**2)
        forward_drift = (forward - 1) * weights
        if mode == "marginal":
            mean = weights - forward_drift + variance / 2 * (score + m**2 * score)
        else:
            mean = weights - m**2 * (forward_drift - variance * score)
        weights = np.append(mean, np.sqrt(variance) * m)
    expected = np.sum(mean**2) / v
    np.testing.assert_allclose(stability.variance_ratio(levels, mode, eigenvalue, v), expected, rtol=1e-10)


@pytest.mark.parametrize("m, limit", [(1.1, 0.852), (1.25, 0.735), (2.0, 0.571)])
def test_many_levels_bring_paper_mode_to_its_biased_limit_and_marginal_mode_to_one(m, limit):
    levels = sde_lib.VESDE(1e-3, 100.0, 40000).levels(20000, 1e-5)
    np.testing.assert_allclose(stability.noise_ratio(levels, "paper", m**2), m**2 / (2 * m**2 - 1), rtol=4e-3)
    assert round(m**2 / (2 * m**2 - 1), 3) == limit
    np.testing.assert_allclose(stability.noise_ratio(levels, "marginal", m**2), 1, rtol=4e-3)


def test_few_levels_bring_each_mode_to_its_closed_form_in_q():
    levels = ve_levels(66)
    q = 1 - (levels.sigma[1] / levels.sigma[0]) ** 2
    expected = 1.5 * q / (1 - q - (1 - 1.5 * q) ** 2)
    np.testing.assert_allclose(stability.noise_ratio(levels, "paper", 1.5), expected, rtol=1e-6)
    expected = 1.5 / (1.5 - 2.5**2 * q / 4)  # above 1: marginal mode does not smooth
    np.testing.assert_allclose(stability.noise_ratio(levels, "marginal", 1.5), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["paper", "marginal"])
def test_growth_on_geometric_levels_is_the_closed_form(mode):
    levels, eigenvalue = ve_levels(8, 50.0), 1.25**2
    q = 1 - (levels.sigma[1] / levels.sigma[0]) ** 2
    effective = eigenvalue if mode == "paper" else (1 + eigenvalue) / 2
    np.testing.assert_allclose(stability.growth(levels, mode, eigenvalue), abs(1 - effective * q) / np.sqrt(1 - q))


def filters(strongest, h=4, w=6):
    freq = np.ones((h, w, 3))
    freq[h // 2] = strongest
    return FrequencyPreconditioner(jnp.asarray(freq))


def test_the_warning_fires_at_eight_levels_and_quotes_the_predicted_noise():
    levels = ve_levels(8, 50.0)
    assert stability.noise_ratio(levels, "paper", 1.25**2) == pytest.approx(2660, rel=0.01)
    warning = stability.stability_warning(levels, "paper", filters(1.25))
    assert "8 levels are too few" in warning and "2.66e+03 times too large (11.4 without filters)" in warning
    assert "Raise --alpha, lower --speed_up" in warning
    for quiet in ("marginal", "corrector_only"):
        assert stability.stability_warning(levels, quiet, filters(1.25)) is None


def test_the_warning_is_silent_at_published_settings_and_without_filters():
    assert stability.stability_warning(ve_levels(66), "paper", filters(1.25)) is None
    assert stability.stability_warning(ve_levels(8, 50.0), "paper", Identity()) is None


def test_paper_mode_warns_where_it_takes_away_noise_that_the_network_is_told_of():
    levels = ve_levels(100, 50.0)  # the demo at a speed-up of 10, where its images lose their texture
    assert stability.noise_ratio(levels, "paper", 1.25**2) == pytest.approx(0.90, abs=0.005)
    warning = stability.stability_warning(levels, "paper", filters(1.25))
    assert "with 100 levels" in warning and "0.90 of the noise" in warning and "--alpha=auto" in warning
    balanced = stability.automatic_alpha(levels, "paper")
    assert stability.stability_warning(levels, "paper", filters(balanced / (balanced - 1))) is None
    for mode, count in (("marginal", 100), ("corrector_only", 100), ("paper", 50)):
        assert stability.stability_warning(ve_levels(count, 50.0), mode, filters(1.25)) is None
    for ratio, warns in ((0.94, True), (0.96, False)):
        m = scipy.optimize.brentq(lambda m: stability.noise_ratio(levels, "paper", m**2) - ratio, 1.0, 1.25)  # noqa: B023
        assert (stability.stability_warning(levels, "paper", filters(m)) is not None) == warns
    assert stability.stability_warning(levels, "paper", Identity()) is None


def test_marginal_mode_warns_only_beyond_its_own_wider_limit():
    levels = ve_levels(8, 50.0)
    q = 1 - (levels.sigma[1] / levels.sigma[0]) ** 2
    limit = 2 * (1 + np.sqrt(1 - q)) / q - 1
    assert stability.stability_warning(levels, "marginal", filters(np.sqrt(limit) * 0.99)) is None
    assert stability.stability_warning(levels, "marginal", filters(np.sqrt(limit) * 1.01)) is not None


def test_the_largest_eigenvalue_is_that_of_the_dense_operator():
    rng = np.random.default_rng(0)
    power = np.abs(np.fft.fft2(rng.normal(size=(4, 6, 1)), axes=(0, 1))) ** 2
    freq, space = jnp.asarray(1 + power / power.max()), jnp.asarray(rng.uniform(1, 1.5, (4, 6, 1)))
    basis = jnp.eye(24).reshape(24, 4, 6, 1)
    for m in (
        FourierPreconditioner(freq, space),
        FrequencyPreconditioner(freq),
        SpacePreconditioner(space),
        Identity(),
        Skewed(FourierPreconditioner(freq, space), Shift(2), jnp.asarray(0.5)),
    ):
        dense = np.asarray(m.apply(basis)).reshape(24, 24)
        np.testing.assert_allclose(stability.largest_eigenvalue(m), np.linalg.eigvalsh(dense).max(), rtol=2e-3)


@pytest.mark.parametrize(
    "sigma_max, count, alpha, tolerance",
    [(1348, 200, 15, 0.3), (1348, 133, 9.2, 0.1), (1348, 100, 6.0, 0.03), (1348, 66, 3.9, 0.03), (378, 166, 13.8, 0.1)],
)
def test_automatic_alpha_matches_figures_worked_out_apart(sigma_max, count, alpha, tolerance):
    assert stability.automatic_alpha(ve_levels(count, sigma_max), "paper") == pytest.approx(alpha, abs=tolerance)


def test_automatic_alpha_removes_the_inflation_where_it_can_and_minimises_it_elsewhere():
    def ratio(levels, alpha):
        return stability.noise_ratio(levels, "paper", (alpha / (alpha - 1)) ** 2)

    many, few = ve_levels(200), ve_levels(66)
    assert ratio(many, stability.automatic_alpha(many, "paper")) == pytest.approx(1, abs=1e-3)
    best = stability.automatic_alpha(few, "paper")
    assert 1.1 < ratio(few, best) < min(ratio(few, best * 1.05), ratio(few, best / 1.05))


@pytest.mark.parametrize("mode", ["marginal", "corrector_only"])
def test_automatic_alpha_is_refused_in_modes_with_nothing_to_balance(mode):
    with pytest.raises(ValueError, match=rf"pds_mode='{mode}' has no such error to balance"):
        stability.automatic_alpha(ve_levels(66), mode)


def test_automatic_alpha_is_refused_on_levels_that_are_not_geometric():
    with pytest.raises(ValueError, match="needs the geometric noise levels of config.sde.name='vesde'"):
        stability.automatic_alpha(sde_lib.VPSDE().levels(50, 1e-3), "paper")
