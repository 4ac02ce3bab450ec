"""The loss against closed forms: networks that know the answer, Gaussian data, and the weightings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from models.denoiser import Denoiser
from training import score_matching
from training.score_matching import ScoreMatching

VE, VP, SUB_VP = sde_lib.VESDE(0.01, 10, num_scales=50), sde_lib.VPSDE(num_scales=50), sde_lib.SubVPSDE()
COSINE = sde_lib.CosineVPSDE(logsnr_min=-8, logsnr_max=8)
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
        return sde_lib.predict(predicts, MEAN + 0 * x, (x - alpha * MEAN) / sigma, alpha, sigma) + 0 * x

    loss = score_matching.loss(
        ScoreMatching(), Denoiser(None, network, sde, predicts, "t"), jnp.full((64, 2, 2, 1), MEAN), keys(64)
    )
    np.testing.assert_allclose(loss, 0, atol=1e-10)


PRIOR_MEAN, PRIOR_VAR = 0.4, 0.25


def ideal(predicts, sde, x, alpha, sigma):
    """What the best network says of x, for data N(PRIOR_MEAN, PRIOR_VAR): by Bayes' rule for Gaussians."""
    x0 = PRIOR_MEAN + alpha * PRIOR_VAR / (alpha**2 * PRIOR_VAR + sigma**2) * (x - alpha * PRIOR_MEAN)
    eps = (x - alpha * x0) / sigma
    outputs = {"score": -eps / sigma, "eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}
    return jnp.concatenate([x0, eps], -1) if predicts == "both" else outputs[predicts]


def trained(denoiser, settings, n):
    """The parameters that minimise the loss over n images: one Newton step, exact for a network linear in them."""
    x0 = PRIOR_MEAN + PRIOR_VAR**0.5 * jax.random.normal(jax.random.key(5), (n, 2, 2, 1))

    def mean_loss(params):
        return score_matching.loss(settings, dataclasses.replace(denoiser, params=params), x0, keys(n)).mean()

    start = jnp.zeros_like(denoiser.params)
    hessian, gradient = jax.jit(lambda params: (jax.hessian(mean_loss)(params), jax.grad(mean_loss)(params)))(start)
    return start - np.linalg.lstsq(hessian, gradient, rcond=1e-9)[0]


MILD = {
    "ve": sde_lib.VESDE(0.1, 5.0),
    "vp": sde_lib.VPSDE(0.1, 5.0),
    "subvp": sde_lib.SubVPSDE(0.1, 5.0),
    "cosine": sde_lib.CosineVPSDE(logsnr_min=-3, logsnr_max=3),
}


@pytest.mark.parametrize(
    "predicts, process, weighting",
    [
        ("score", "ve", "eps"),
        ("score", "cosine", "likelihood"),
        ("eps", "vp", "constant"),
        ("x0", "subvp", "snr_trunc"),
        ("x0", "ve", "edm"),
        ("v", "cosine", "v"),
        ("both", "vp", "snr"),
        ("both", "ve", "constant"),
    ],
)
def test_on_gaussian_data_every_objective_is_least_at_the_closed_form(predicts, process, weighting):
    sde = MILD[process]

    # The network knows how its answer depends on time, but for two factors, whose best values are 1.
    def network(params, x, t):
        alpha, sigma = column(sde.alpha(t)), column(sde.sigma(t))
        offset = ideal(predicts, sde, jnp.zeros_like(x), alpha, sigma)
        return params[0] * offset + params[1] * (ideal(predicts, sde, x, alpha, sigma) - offset)

    settings = ScoreMatching(weighting, end_time=0.2)
    found = trained(Denoiser(jnp.zeros(2), network, sde, predicts, "t"), settings, 20_000)
    np.testing.assert_allclose(found, 1, atol=0.03)


@pytest.mark.parametrize(
    "told, predicts",
    [("level", "score"), ("level", "both"), ("fractional_level", "eps"), ("fractional_level", "v")],
)
def test_on_gaussian_data_a_discrete_model_learns_every_level_of_its_own_chain(told, predicts):
    if told == "level":
        sde, alpha, sigma = sde_lib.VESDE(0.1, 2, num_scales=4), np.ones(4), np.geomspace(2, 0.1, 4)
    else:
        sde, alpha = sde_lib.VPSDE(0.1, 2, num_scales=4), np.sqrt(np.cumprod(1 - np.linspace(0.1 / 4, 2 / 4, 4)))
        sigma = np.sqrt(1 - alpha**2)
    heads = 2 if predicts == "both" else 1

    # A slope and an offset of each head at each level: nothing of the answer is known.
    def network(params, x, labels):
        slope, offset = params.reshape(2, 4, heads)[:, jnp.round(labels).astype(int)]
        return slope[:, None, None] * x + offset[:, None, None]

    found = trained(Denoiser(jnp.zeros(8 * heads), network, sde, predicts, told), ScoreMatching(), 20_000)
    slope, offset = np.asarray(found).reshape(2, 4, heads)
    for level in range(4):
        at = np.float64(alpha[level]), np.float64(sigma[level])
        for x in (0.0, 1.0):
            best = np.ravel(ideal(predicts, sde, jnp.full((1,), x), *at))
            learned = slope[level] * x + offset[level]
            np.testing.assert_allclose(x0_of(predicts, learned, x, *at), x0_of(predicts, best, x, *at), atol=0.02)


def x0_of(predicts, output, x, alpha, sigma):
    return sde_lib.x0_and_eps(predicts, output, np.array([x]), alpha, sigma)[0]


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
    for name in ("eps", "snr"):
        np.testing.assert_array_equal(weight_at(ScoreMatching(name), VP, t), 1)
    likelihood = weight_at(ScoreMatching("likelihood"), VP, t)
    np.testing.assert_allclose(likelihood, VP.beta(t) / (1 - VP.alpha(t) ** 2), rtol=1e-10)
    for centered, unit in ((True, 1), (False, 2)):
        edm = weight_at(ScoreMatching("edm", sigma_data=0.4, centered=centered), VE, t)
        np.testing.assert_allclose(edm, 1 + (unit * VE.sigma(t) / 0.4) ** 2, rtol=1e-10)


def weight_at(settings, sde, t):
    return score_matching.weight(settings, sde.alpha(t), sde.sigma(t), sde.diffusion_squared(t))


@pytest.mark.parametrize("sde", [VE, VP, SUB_VP, COSINE], ids=["ve", "vp", "subvp", "cosine"])
def test_the_weights_make_the_error_of_eps_that_of_the_image_or_of_v(sde):
    t = jnp.linspace(0.2, 1, 5)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x, eps, wrong = (jax.random.normal(jax.random.key(i), (5,)) for i in range(3))
    both = [sde_lib.x0_and_eps("eps", noise, x, alpha, sigma) for noise in (eps, wrong)]
    (x0, _), (wrong_x0, _) = both
    error_eps, error_x0 = (eps - wrong) ** 2, (x0 - wrong_x0) ** 2
    error_v = (sde_lib.predict("v", x0, eps, alpha, sigma) - sde_lib.predict("v", wrong_x0, wrong, alpha, sigma)) ** 2
    for name, expected in {
        "snr": error_eps,
        "constant": error_x0,
        "snr_trunc": jnp.maximum(error_x0, error_eps),
        "v": error_v,
    }.items():
        np.testing.assert_allclose(weight_at(ScoreMatching(name), sde, t) * error_eps, expected, rtol=1e-6)


@pytest.mark.parametrize("weighting", ["likelihood", "edm", "constant", "v"])
def test_the_loss_is_the_weight_times_the_eps_loss(weighting):
    x0, denoiser, settings = jnp.zeros((9, 2, 2, 1)), Denoiser(None, zero, VP, "eps", "t"), ScoreMatching(weighting)
    t = jax.vmap(lambda key: score_matching.sample_time(settings, VP, "t", jax.random.split(key)[0]))(keys(9))
    plain = score_matching.loss(ScoreMatching(), denoiser, x0, keys(9))
    weighted = score_matching.loss(settings, denoiser, x0, keys(9))
    np.testing.assert_allclose(weighted / plain, weight_at(settings, VP, t), rtol=1e-10)


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
        at = column(signal[jnp.round(labels).astype(int)])
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


def test_classes_are_left_out_at_their_rate_and_by_the_image_not_by_the_batch():
    classes, each = jnp.arange(4000) % 5, keys(4000)
    told = score_matching.told_classes(classes, each, 0.2, 7)
    np.testing.assert_allclose(np.mean(np.asarray(told) == 7), 0.2, atol=0.02)
    np.testing.assert_array_equal(np.where(told == 7, classes, told), classes)
    np.testing.assert_array_equal(score_matching.told_classes(classes[::3], each[::3], 0.2, 7), told[::3])
    np.testing.assert_array_equal(score_matching.told_classes(classes, each, 0.0, 7), classes)


def test_whether_a_class_is_left_out_says_nothing_of_the_noise():
    each = keys(4000)
    left_out = np.asarray(score_matching.told_classes(jnp.zeros(4000, int), each, 0.5, 1)) == 1
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[1]))(each)
    t = jax.vmap(lambda key: score_matching.sample_time(ScoreMatching(), VE, "t", jax.random.split(key)[0]))(each)
    for drawn in (noise, t):
        assert abs(np.corrcoef(left_out, np.asarray(drawn))[0, 1]) < 0.05
