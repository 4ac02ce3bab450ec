"""The loss against closed forms: networks that know the answer, Gaussian data, and the weightings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from models.denoiser import Denoiser
from training import score_matching
from training.score_matching import ScoreMatching

VE, VP, SUB_VP = sde_lib.VESDE(0.01, 10, num_scales=50), sde_lib.VPSDE(num_scales=50), sde_lib.SubVPSDE()
MEAN = 0.7


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def column(value):
    return value[:, None, None, None]


def zero(params, x, labels):
    return jnp.zeros_like(x)


@pytest.mark.parametrize("sde", [VE, VP, SUB_VP], ids=["ve", "vp", "subvp"])
@pytest.mark.parametrize("predicts", sde_lib.PREDICTIONS)
def test_a_network_that_knows_the_image_has_no_loss(sde, predicts):
    def network(params, x, t):
        alpha, sigma = column(sde.alpha(t)), column(sde.sigma(t))
        return sde_lib.predict(predicts, MEAN, (x - alpha * MEAN) / sigma, alpha, sigma) + 0 * x

    loss = score_matching.loss(
        ScoreMatching(), Denoiser(None, network, sde, predicts, "t"), jnp.full((64, 2, 2, 1), MEAN), keys(64)
    )
    np.testing.assert_allclose(loss, 0, atol=1e-10)


@pytest.mark.parametrize("predicts", ["score", "eps"])
def test_the_optimal_linear_network_has_the_posterior_variance_as_loss(predicts):
    n, var = 100_000, 0.25
    x0 = jnp.sqrt(var) * jax.random.normal(jax.random.key(5), (n, 2, 2, 1))

    def network(params, x, t):
        score = -x / column(VP.alpha(t) ** 2 * var + VP.sigma(t) ** 2)
        return score if predicts == "score" else -column(VP.sigma(t)) * score

    loss = score_matching.loss(
        ScoreMatching(end_time=1e-3, reduce_mean=True), Denoiser(None, network, VP, predicts, "t"), x0, keys(n)
    )
    t = 1e-3 + (1 - 1e-3) * (np.arange(20_000) + 0.5) / 20_000
    expected = np.mean(VP.alpha(t) ** 2 * var / (VP.alpha(t) ** 2 * var + VP.sigma(t) ** 2))
    assert abs(loss.mean() - expected) < 4 * loss.std() / np.sqrt(n) < 0.03 * expected


def test_without_reduce_mean_the_loss_is_half_the_sum():
    x0, denoiser = jnp.zeros((20_000, 2, 3, 1)), Denoiser(None, zero, VP, "eps", "t")
    total = score_matching.loss(ScoreMatching(), denoiser, x0, keys(20_000))
    mean = score_matching.loss(ScoreMatching(reduce_mean=True), denoiser, x0, keys(20_000))
    np.testing.assert_allclose(total, 3 * mean, rtol=1e-12)
    np.testing.assert_allclose(mean.mean(), 1, atol=0.016)


def test_weightings_are_the_published_factors():
    t = jnp.linspace(0.1, 1, 7)
    np.testing.assert_array_equal(score_matching.weight(ScoreMatching(), VP, t), 1)
    likelihood = score_matching.weight(ScoreMatching("likelihood"), VP, t)
    np.testing.assert_allclose(likelihood, VP.beta(t) / (1 - VP.alpha(t) ** 2), rtol=1e-10)
    for centered, unit in ((True, 1), (False, 2)):
        edm = score_matching.weight(ScoreMatching("edm", sigma_data=0.4, centered=centered), VE, t)
        np.testing.assert_allclose(edm, 1 + (unit * VE.sigma(t) / 0.4) ** 2, rtol=1e-10)


@pytest.mark.parametrize("weighting", ["likelihood", "edm"])
def test_the_loss_is_the_weight_times_the_eps_loss(weighting):
    x0, denoiser, settings = jnp.zeros((9, 2, 2, 1)), Denoiser(None, zero, VP, "eps", "t"), ScoreMatching(weighting)
    t = jax.vmap(lambda key: score_matching.sample_time(settings, VP, "t", jax.random.split(key)[0]))(keys(9))
    plain = score_matching.loss(ScoreMatching(), denoiser, x0, keys(9))
    weighted = score_matching.loss(settings, denoiser, x0, keys(9))
    np.testing.assert_allclose(weighted / plain, score_matching.weight(settings, VP, t), rtol=1e-10)


def test_an_images_loss_does_not_depend_on_the_batch_it_came_in():
    x0, denoiser = jax.random.normal(jax.random.key(1), (6, 2, 2, 1)), Denoiser(None, zero, VP, "eps", "t")
    whole = score_matching.loss(ScoreMatching(), denoiser, x0, keys(6))
    parts = [score_matching.loss(ScoreMatching(), denoiser, x0[i::3], keys(6)[i::3]) for i in range(3)]
    for i in range(3):
        np.testing.assert_allclose(parts[i], whole[i::3], rtol=1e-12)
    assert len(set(np.asarray(whole).tolist())) == 6


def test_discrete_ve_models_are_trained_on_their_ladder():
    ladder = jnp.asarray(VE.discrete_sigmas()[::-1].copy())

    def network(params, x, labels):
        return -(x - MEAN) / column(ladder[labels.astype(int)] ** 2)

    loss = score_matching.loss(
        ScoreMatching(), Denoiser(None, network, VE, "score", "level"), jnp.full((300, 1, 1, 1), MEAN), keys(300)
    )
    np.testing.assert_allclose(loss, 0, atol=1e-10)


def test_discrete_vp_models_are_trained_on_the_marginals_of_their_chain():
    signal = jnp.cumprod(1 - jnp.linspace(0.1 / 50, 20 / 50, 50))

    def network(params, x, labels):
        at = column(signal[labels.astype(int)])
        return (x - jnp.sqrt(at) * MEAN) / jnp.sqrt(1 - at)

    denoiser = Denoiser(None, network, VP, "eps", "fractional_level")
    loss = score_matching.loss(ScoreMatching(), denoiser, jnp.full((300, 1, 1, 1), MEAN), keys(300))
    np.testing.assert_allclose(loss, 0, atol=1e-10)


@pytest.mark.parametrize("told", ["level", "fractional_level"])
def test_discrete_times_are_all_the_levels(told):
    t = jax.vmap(lambda key: score_matching.sample_time(ScoreMatching(), VE, told, key))(keys(2000))
    np.testing.assert_allclose(np.unique(t), np.arange(50) / 49, rtol=1e-12)


def test_continuous_times_are_uniform_from_end_time_to_one():
    t = jax.vmap(lambda key: score_matching.sample_time(ScoreMatching(end_time=0.2), VP, "t", key))(keys(4000))
    assert 0.2 <= t.min() < 0.202 and 0.998 < t.max() <= 1
    np.testing.assert_allclose(t.mean(), 0.6, atol=0.015)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_lognormal_mix_draws_its_share_around_its_mean(share):
    settings = ScoreMatching(
        noise_levels="lognormal_mix", lognormal_mean=-1.0, lognormal_std=1e-3, lognormal_share=share, end_time=1e-3
    )
    t = jax.vmap(lambda key: score_matching.sample_time(settings, VE, "t", key))(keys(4000))
    assert t.min() >= 1e-3 - 1e-6 and t.max() <= 1 + 1e-6
    near = np.abs(np.log(VE.sigma(np.asarray(t))) + 1) < 0.005
    np.testing.assert_allclose(near.mean(), share, atol=0.03)
    if share < 1:
        np.testing.assert_allclose(t[~near].mean(), 0.5, atol=0.02)  # log-uniform is uniform in VE time


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="config.training.weighting='sigma' is unknown"):
        ScoreMatching("sigma")
    with pytest.raises(ValueError, match="config.training.noise_levels='cosine' is unknown"):
        ScoreMatching(noise_levels="cosine")
