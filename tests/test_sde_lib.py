"""Processes: marginals, their derivatives, exact and published levels, and what networks predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib

SDES = [
    sde_lib.VESDE(),
    sde_lib.VPSDE(),
    sde_lib.SubVPSDE(),
    sde_lib.CosineVPSDE(),
    sde_lib.EDMSDE(),
    sde_lib.DiscreteVPSDE(),
    sde_lib.DiscreteVPSDE("cosine"),
]
TIMES = np.linspace(0.02, 0.98, 25)
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__ + getattr(sde, "schedule", ""))


@pytest.mark.parametrize("sde", [SDES[1], SDES[3], SDES[5]], ids=["vp", "cosine", "discrete"])
def test_variance_is_preserved(sde):
    np.testing.assert_allclose(sde.alpha(TIMES) ** 2 + sde.sigma(TIMES) ** 2, 1, rtol=1e-14)


def test_sub_vp_std_is_one_minus_alpha_squared():
    np.testing.assert_allclose(SDES[2].sigma(TIMES), 1 - SDES[2].alpha(TIMES) ** 2, rtol=1e-12)


def test_marginals_at_a_known_time():
    np.testing.assert_allclose(sde_lib.VESDE(0.01, 100).sigma(0.5), 1, rtol=1e-14)
    for sde in (sde_lib.VPSDE(0.1, 20), sde_lib.SubVPSDE(0.1, 20)):
        np.testing.assert_allclose(sde.alpha(1.0), np.exp(-0.25 * (20 + 0.1)), rtol=1e-14)
    np.testing.assert_allclose(-2 * np.log(SDES[3].noise_scale(np.array([0.0, 1.0]))), [20, -20], rtol=1e-10)


@each_sde
def test_noise_scale_is_sigma_over_alpha_and_time_inverts_it(sde):
    s = sde.noise_scale(TIMES)
    np.testing.assert_allclose(s, sde.sigma(TIMES) / sde.alpha(TIMES), rtol=1e-12)
    np.testing.assert_allclose(sde.time(s), TIMES, rtol=1e-10)
    assert (np.diff(s) > 0).all()


@each_sde
def test_drift_and_diffusion_are_the_derivatives_of_the_marginals(sde):
    h = 1e-5
    drift = (np.log(sde.alpha(TIMES + h)) - np.log(sde.alpha(TIMES - h))) / (2 * h)
    growth = (sde.sigma(TIMES + h) ** 2 - sde.sigma(TIMES - h) ** 2) / (2 * h)
    np.testing.assert_allclose(sde.drift(TIMES), drift, rtol=1e-6, atol=1e-9)
    expected = growth - 2 * drift * sde.sigma(TIMES) ** 2
    np.testing.assert_allclose(sde.diffusion_squared(TIMES), expected, rtol=1e-6, atol=1e-9)


@each_sde
def test_numpy_stays_numpy_and_jax_agrees_with_it(sde):
    for name in ("alpha", "sigma", "noise_scale", "drift", "diffusion_squared"):
        host, device = getattr(sde, name)(TIMES), getattr(sde, name)(jnp.asarray(TIMES))
        assert isinstance(host, np.ndarray) and isinstance(device, jax.Array)
        np.testing.assert_allclose(host, device, rtol=1e-12)


@pytest.mark.parametrize("sde", SDES[1:4], ids=["vp", "subvp", "cosine"])
def test_float32_keeps_its_digits_where_there_is_little_noise(sde):
    """1 - exp(-x) and log(1 + x) spelt out would lose them all: the integral of beta is 1e-6 at t = 1e-5."""
    t = np.array([1e-5, 1e-4, 1e-3])
    for name in ("sigma", "noise_scale", "diffusion_squared"):
        np.testing.assert_allclose(getattr(sde, name)(jnp.asarray(t, jnp.float32)), getattr(sde, name)(t), rtol=3e-6)
    np.testing.assert_allclose(sde.time(jnp.asarray(sde.noise_scale(t), jnp.float32)), t, rtol=3e-6)


def test_processes_end_where_the_published_samplers_stop():
    assert [sde.end_time for sde in SDES] == [1e-5, 1e-3, 1e-3, 1e-3, 0.0, 0.0, 0.0]
    # Ladders end at their lowest level, t = 0; VP, sub-VP and cosine have no noise there and stop before.
    assert [sde.levels(40, 0.02).t[-1] for sde in SDES] == [0.0, 0.02, 0.02, 0.02, 0.0, 0.0, 0.0]


@each_sde
def test_exact_levels_telescope_to_the_marginals(sde):
    levels = sde.levels(30, sde.end_time)
    alpha, variance = 1.0, 0.0
    for k in reversed(range(30)):
        np.testing.assert_allclose(levels.sigma_below[k] ** 2, variance, rtol=1e-9)
        alpha, variance = levels.forward[k] * alpha, levels.forward[k] ** 2 * variance + levels.variance[k]
        np.testing.assert_allclose(alpha, sde.alpha(levels.t[k]), rtol=1e-9)
        np.testing.assert_allclose(variance, sde.sigma(levels.t[k]) ** 2, rtol=1e-9)
        np.testing.assert_allclose(levels.sigma[k] ** 2, variance, rtol=1e-9)
    assert levels.t[0] == 1 and (np.diff(levels.t) < 0).all() and (levels.variance > 0).all()
    np.testing.assert_array_equal(levels.langevin_alpha, levels.forward**2)
    np.testing.assert_array_equal(levels.drift, sde.drift(levels.t))
    np.testing.assert_array_equal(levels.diffusion_squared, sde.diffusion_squared(levels.t))


def test_published_ve_levels_step_on_the_ladder_and_score_at_even_times():
    sde = sde_lib.VESDE(0.01, 50, num_scales=100)
    ladder = 0.01 * (50 / 0.01) ** np.linspace(0, 1, 20)
    levels = sde.levels(20, 1e-5, published=True)
    np.testing.assert_allclose(levels.sigma, ladder[::-1], rtol=1e-12)
    np.testing.assert_allclose(levels.variance, np.diff(np.append(0, ladder**2))[::-1], rtol=1e-9)
    np.testing.assert_allclose(levels.t, np.linspace(1, 1e-5, 20), rtol=1e-14)
    np.testing.assert_allclose(levels.diffusion_squared, sde.diffusion_squared(levels.t), rtol=1e-14)
    np.testing.assert_array_equal(levels.forward, 1)
    assert len(sde.discrete_sigmas()) == 100


@pytest.mark.parametrize("n", [40, 1000, 2000])
def test_published_vp_levels_are_ddpm_steps_down_to_the_first(n):
    levels = sde_lib.VPSDE(0.1, 20, num_scales=2000).levels(n, 1e-3, published=True)
    betas = [(0.1 + (20 - 0.1) * k / (n - 1)) / n for k in range(n)]
    np.testing.assert_allclose(levels.variance[::-1], betas, rtol=1e-12)
    np.testing.assert_allclose(levels.forward**2 + levels.variance, 1, rtol=1e-12)
    np.testing.assert_allclose(levels.langevin_alpha, 1 - levels.variance, rtol=1e-12)
    assert (np.diff(levels.sigma) < 0).all() and (np.diff(levels.t) < 0).all()
    np.testing.assert_allclose(levels.sigma[-1], np.sqrt(0.1 / n), rtol=1e-8)
    np.testing.assert_array_equal(levels.sigma_below, np.append(levels.sigma[1:], 0))
    variance = levels.forward**2 * levels.sigma_below**2 + levels.variance
    np.testing.assert_allclose(levels.sigma**2, variance, rtol=1e-9)


def test_published_sub_vp_levels_are_euler_maruyama_steps():
    sde = SDES[2]
    levels = sde.levels(50, 1e-3, published=True)
    np.testing.assert_allclose(levels.forward, 1 - 0.5 * sde.beta(levels.t) / 50, rtol=1e-12)
    np.testing.assert_allclose(levels.variance, sde.beta(levels.t) * (1 - sde.alpha(levels.t) ** 4) / 50, rtol=1e-9)
    np.testing.assert_allclose(levels.langevin_alpha, 1 - sde.beta(levels.t) / 50, rtol=1e-12)
    np.testing.assert_array_equal(levels.sigma_below, np.append(sde.sigma(levels.t)[1:], 0))


def test_edm_levels_are_its_noise_scales():
    edm = sde_lib.EDMSDE(0.002, 80)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose(edm.levels(18, 0.0).sigma, expected, rtol=1e-12)
    np.testing.assert_allclose(sde_lib.EDMSDE(1, 3, rho=1).sigma(np.array([0, 0.5, 1])), [1, 2, 3], rtol=1e-14)


def test_the_chain_of_ddpm_is_met_at_every_level():
    abar, levels = 1.0, []
    for i in range(1000):
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        levels.append(abar)
    levels, t = np.array(levels), np.arange(1000) / 999
    sde = sde_lib.DiscreteVPSDE()
    np.testing.assert_allclose(sde.alpha(t), np.sqrt(levels), rtol=1e-10)
    np.testing.assert_allclose(sde.noise_scale(t[[0, -1]]), [0.0100005, 157.4073], rtol=1e-6)
    half = np.sqrt(sde.noise_scale(t[5]) * sde.noise_scale(t[6]))  # between levels: geometric in the noise scale
    np.testing.assert_allclose(sde.time(half), 5.5 / 999, rtol=1e-12)
    assert sde.time(np.array(1e-4)) == 0 and sde.time(np.array(0.0)) == 0


def test_a_whole_level_is_told_exactly_also_in_float32():
    for schedule in ("linear", "cosine"):
        sde = sde_lib.DiscreteVPSDE(schedule)
        s = sde.noise_scale(np.arange(1000) / 999)
        told = sde.index(sde.time(jnp.asarray(s, jnp.float32)))
        np.testing.assert_array_equal(told, np.arange(1000))
        np.testing.assert_allclose(sde.index(np.array([0.25])), 249.75, rtol=1e-12)


def test_the_other_schedules_of_betas():
    cosine = sde_lib.DiscreteVPSDE("cosine").discrete_betas()
    abar = [np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for i in (0, 1, 500, 501)]
    np.testing.assert_allclose(cosine[[0, 500]], [1 - abar[1] / abar[0], 1 - abar[3] / abar[2]], rtol=1e-10)
    assert cosine[-1] == 0.999 and 1e4 < sde_lib.DiscreteVPSDE("cosine").noise_scale(1.0) < 3e4
    latent = sde_lib.DiscreteVPSDE("scaled_linear", beta_min=0.85, beta_max=12.0).discrete_betas()
    np.testing.assert_allclose(
        np.sqrt(latent[[0, 1, -1]]),
        [0.00085**0.5, 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) / 999, 0.012**0.5],
        rtol=1e-12,
    )


def test_settings_and_level_counts_without_meaning_are_refused():
    for sde in SDES:
        with pytest.raises(ValueError, match="1 noise levels: a sampler needs at least 2. Lower --speed_up"):
            sde.levels(1, 1e-3)
        with pytest.raises(ValueError, match="num_scales >= 2, got 1"):
            type(sde)(num_scales=1)
    for sde in SDES[1:3]:
        with pytest.raises(ValueError, match=r"10 noise levels make beta = 2.00 > 1"):
            sde.levels(10, 1e-3, published=True)
        with pytest.raises(ValueError, match="0 < beta_min < beta_max, got 3 and 2"):
            type(sde)(beta_min=3, beta_max=2)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max, got 2 and 1"):
        sde_lib.VESDE(2, 1)
    with pytest.raises(ValueError, match="EDMSDE needs 0 < sigma_min < sigma_max and rho > 0, got 2, 1 and 7"):
        sde_lib.EDMSDE(2, 1)
    with pytest.raises(ValueError, match=r"schedule='sqrt' is unknown; choose one of \('linear'"):
        sde_lib.DiscreteVPSDE("sqrt")
    with pytest.raises(ValueError, match="beta_max <= num_scales, got 0.1, 20.0 and 10"):
        sde_lib.DiscreteVPSDE(num_scales=10)
    with pytest.raises(ValueError, match="logsnr_min < logsnr_max, got 1 and -1"):
        sde_lib.CosineVPSDE(1, -1)
    with pytest.raises(ValueError, match="config.sde.name='vp' is unknown"):
        sde_lib.create_sde("vp")


def test_create_sde_takes_only_the_settings_of_its_process():
    sde = sde_lib.create_sde("vpsde", beta_max=10.0, sigma_max=3.0)
    assert sde == sde_lib.VPSDE(beta_max=10.0) and isinstance(sde, sde_lib.GaussianSDE)
    assert [sde.prior_sigma for sde in SDES] == [50, 1, 1, 1, 80, 1, 1]


@pytest.mark.parametrize("kind", sde_lib.PREDICTIONS)
@pytest.mark.parametrize("alpha, sigma", [(1.0, 3.0), (0.8, 0.6), (0.7, 0.2)])
def test_every_prediction_gives_back_image_and_noise(kind, alpha, sigma):
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 1))
    output = sde_lib.predict(kind, x0, eps, alpha, sigma)
    found = sde_lib.x0_and_eps(kind, output, alpha * x0 + sigma * eps, alpha, sigma)
    np.testing.assert_allclose(found, (x0, eps), rtol=1e-10, atol=1e-12)


def test_two_predictions_that_disagree_are_weighed_by_signal_and_noise():
    x0_head, eps_head, x, alpha, sigma = np.array([0.9]), np.array([-0.4]), np.array([0.7]), 0.8, 0.6
    found = sde_lib.x0_and_eps("both", np.concatenate([x0_head, eps_head]), x, alpha, sigma)
    x0 = sigma**2 * x0_head + alpha**2 * (x - sigma * eps_head) / alpha
    np.testing.assert_allclose(found, (x0, (x - alpha * x0) / sigma), rtol=1e-12)


def test_predictions_mean_what_their_names_say():
    outputs = [sde_lib.predict(kind, 2.0, 3.0, 0.8, 0.6) for kind in ("score", "eps", "x0", "v")]
    np.testing.assert_allclose(outputs, [-5, 3, 2, 1.2], rtol=1e-12)
    np.testing.assert_array_equal(sde_lib.predict("both", np.full(1, 2.0), np.full(1, 3.0), 0.8, 0.6), [2, 3])
    for convert in (sde_lib.predict, sde_lib.x0_and_eps):
        with pytest.raises(ValueError, match="prediction 'noise' is unknown"):
            convert("noise", 2.0, 3.0, 0.8, 0.6)
