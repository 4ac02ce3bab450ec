"""The loss of a codec: divergences by quadrature, the drawn latent's gradient, and the optimum of a linear codec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy import integrate, stats

from training import autoencoder
from training.autoencoder import AutoencoderLoss


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def moments_of(mean, variance):
    """Moments [1, 1, 1, 2c] of independent Gaussians."""
    return jnp.concatenate([jnp.asarray(mean), jnp.log(jnp.asarray(variance))])[None, None, None]


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.2), (-1.3, 2.5)])
def test_the_divergence_is_the_integral_of_the_log_ratio(mean, variance):
    q, p = stats.norm(mean, np.sqrt(variance)), stats.norm()
    expected = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -15, 15)[0]
    found = autoencoder.kl_divergence(moments_of([mean], [variance]))
    np.testing.assert_allclose(found, [expected], rtol=1e-8, atol=1e-10)


def test_the_divergence_of_an_image_is_the_sum_over_its_values():
    moments = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    alone = np.stack([moments[1, ..., :3].ravel(), moments[1, ..., 3:].ravel()], axis=-1)
    each = autoencoder.kl_divergence(jnp.asarray(alone)[:, None, None])
    np.testing.assert_allclose(autoencoder.kl_divergence(jnp.asarray(moments))[1], each.sum(), rtol=1e-10)


def test_a_drawn_latent_has_its_moments_and_depends_on_its_own_key():
    moments = jnp.tile(moments_of([0.5, -2.0], [0.04, 1.69]), (4000, 1, 1, 1))
    drawn = np.asarray(autoencoder.draw(moments, keys_of(4000))).reshape(-1, 2)
    np.testing.assert_allclose(drawn.mean(0), [0.5, -2.0], atol=4 * np.sqrt([0.04, 1.69]).max() / np.sqrt(4000))
    np.testing.assert_allclose(drawn.std(0), [0.2, 1.3], rtol=0.05)
    alone = autoencoder.draw(moments[7:8], keys_of(4000)[7:8])
    np.testing.assert_allclose(alone.ravel(), drawn[7], rtol=1e-6)


def test_gradients_pass_through_the_draw_by_the_reparametrisation():
    """z = m + exp(l/2) e: dz/dm = 1 and dz/dl = (z - m)/2, for every drawn e."""
    moments, keys = moments_of([0.5], [0.3]), keys_of(1, 3)
    z = float(autoencoder.draw(moments, keys)[0, 0, 0, 0])
    by_mean, by_logvar = jax.grad(lambda m: autoencoder.draw(m, keys).sum())(moments).ravel()
    np.testing.assert_allclose([by_mean, by_logvar], [1.0, (z - 0.5) / 2], rtol=1e-10)


def linear(x):
    """Moments and images of a codec that is a multiplication: parameters are encoder, log variance and decoder."""

    def encode(params, x):
        mean = params[0] * x.mean(axis=-1, keepdims=True)
        return jnp.concatenate([mean, jnp.full_like(mean, 1.0) * params[1]], axis=-1)

    def decode(params, z):
        return params[2] * jnp.repeat(z, x.shape[-1], axis=-1)

    return encode, decode


@pytest.mark.parametrize("distance", autoencoder.DISTANCES)
def test_the_loss_is_the_distance_of_what_comes_back_and_a_share_of_the_divergence(distance):
    x, keys, params = jax.random.normal(jax.random.key(1), (3, 2, 2, 2)), keys_of(3), jnp.array([0.8, -1.0, 1.2])
    noise = jnp.stack([jax.random.normal(key, (2, 2, 1)) for key in keys])
    mean = 0.8 * x.mean(-1, keepdims=True)
    back = 1.2 * (mean + jnp.exp(-0.5) * noise)
    gap = np.abs(np.asarray(x - back)) ** {"l1": 1, "l2": 2}[distance]
    nats = ((np.asarray(mean) ** 2 + np.exp(-1) - 1 + 1) / 2).sum((1, 2, 3))
    expected = gap.mean((1, 2, 3)) + 0.05 * nats / 8
    settings = AutoencoderLoss(distance, kl_weight=0.05, perceptual_weight=0.3)
    found = autoencoder.loss(settings, *linear(x), params, x, keys)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    seen = autoencoder.loss(settings, *linear(x), params, x, keys, lambda a, b: (a - 2 * b).sum((1, 2, 3)))
    np.testing.assert_allclose(seen, expected + 0.3 * np.asarray(x - 2 * back).sum((1, 2, 3)), rtol=1e-10)


def test_the_optimum_of_a_linear_codec_is_that_of_probabilistic_pca():
    """For x of variance S and u = w/2 the bound is tight where d^2 = S - u, e = d/S and v = u/S."""
    variance, weight = 1.7, 0.6
    x = jnp.asarray(stats.norm.ppf((np.arange(4000) + 0.5) / 4000))[:, None, None, None]
    x = x * jnp.sqrt(variance / jnp.square(x).mean())
    settings, keys = AutoencoderLoss("l2", weight), keys_of(4000)
    encode, decode = linear(x)

    @jax.jit
    def objective(params):  # with each latent's noise and its negative, so that odd moments vanish
        opposite = jax.vmap(lambda key: -jax.random.normal(key, (1, 1, 1)))(keys)
        moments = encode(params, x)
        back = decode(params, moments[..., :1] + jnp.exp(0.5 * moments[..., 1:]) * opposite)
        mirrored = jnp.square(x - back).mean((1, 2, 3)) + weight * autoencoder.kl_divergence(moments)
        return (autoencoder.loss(settings, encode, decode, params, x, keys) + mirrored).mean() / 2

    value_and_grad = jax.value_and_grad(objective)
    found = scipy.optimize.minimize(lambda p: [*map(np.asarray, value_and_grad(p))], np.ones(3), jac=True).x
    d = np.sqrt(variance - weight / 2)
    np.testing.assert_allclose(found, [d / variance, np.log(weight / 2 / variance), d], rtol=0.03)


def test_settings_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match="config.autoencoder.distance='l3' is unknown; choose one of"):
        AutoencoderLoss("l3")
    with pytest.raises(ValueError, match="kl_weight=-1 and .*must not be negative"):
        AutoencoderLoss(kl_weight=-1.0)
