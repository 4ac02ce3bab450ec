"""A noise-conditional classifier: what its network is fed, its loss by hand, and that training finds Bayes' answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from models.noisy_classifier import NoisyClassifier
from sde_lib import VESDE, VPSDE
from training import classifier as classifier_training
from training.score_matching import ScoreMatching

VE = VESDE(0.01, 50.0)
UNIFORM = ScoreMatching(noise_levels="uniform")


def keys_of(n: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), n)


def fed_to(sde, centered, x, t):
    """(x, times) as the network of a classifier receives them."""
    seen = []

    def network(params, *inputs):
        seen.extend(inputs)
        return jnp.zeros((len(t), 2))

    NoisyClassifier(None, network, sde, centered).logits(x, t)
    return seen


@pytest.mark.parametrize(("sde", "centered"), [(VE, False), (VE, True), (VPSDE(), True), (VPSDE(), False)])
@pytest.mark.parametrize("t", [0.001, 0.5, 1.0])
def test_the_network_sees_inputs_of_unit_variance_at_every_noise_scale(sde, centered, t):
    unit = jax.random.normal(jax.random.key(1), (64, 8, 8, 3))  # data of variance 1 in [-1, 1] units
    x0, z = (unit if centered else (unit + 1) / 2), jax.random.normal(jax.random.key(2), unit.shape)
    t = jnp.full(64, t)
    x = sde.alpha(t)[:, None, None, None] * x0 + sde.sigma(t)[:, None, None, None] * z
    fed, told = fed_to(sde, centered, x, t)
    np.testing.assert_allclose(jnp.mean(fed**2), 1.0, rtol=0.05)
    in_units = sde.noise_scale(t) * (1 if centered else 2)
    np.testing.assert_allclose(told, 500 + 100 * np.log(in_units))


def test_for_vp_in_minus_one_to_one_the_network_sees_x_itself():
    x, t = jax.random.normal(jax.random.key(0), (3, 4, 4, 3)), jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(fed_to(VPSDE(), True, x, t)[0], x, rtol=1e-12)


def test_one_noisy_image_looks_the_same_from_every_process_and_range():
    unit = jax.random.normal(jax.random.key(0), (3, 4, 4, 3))  # y in [-1, 1] units at noise scale 3
    s, vp = jnp.full(3, 3.0), VPSDE()
    seen = [
        fed_to(VE, True, unit, VE.time(s)),
        fed_to(VE, False, (unit + 1) / 2, VE.time(s / 2)),
        fed_to(vp, True, vp.alpha(vp.time(s))[:, None, None, None] * unit, vp.time(s)),
    ]
    for fed, told in seen[1:]:
        np.testing.assert_allclose(fed, seen[0][0], rtol=1e-9)
        np.testing.assert_allclose(told, seen[0][1], rtol=1e-9)


def test_the_log_probability_is_the_logit_less_the_log_sum():
    logits = jnp.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    classifier = NoisyClassifier(None, lambda p, x, t: logits, VE)
    found = classifier(jnp.zeros((2, 2, 2, 3)), jnp.full(2, 0.5), jnp.array([2, 0]))
    np.testing.assert_allclose(found, [4 - np.log(np.exp([1, 2, 4]).sum()), -np.log(3)], rtol=1e-12)


def brightness(params, x, told):
    """Logistic regression on the mean, its slope a function of the noise: enough for classes that differ in mean."""
    u = told / 1000
    slope = jnp.exp(params["slope"] @ jnp.stack([jnp.ones_like(u), u, u**2]))
    return jnp.stack([jnp.zeros_like(slope), slope * x.mean((1, 2, 3)) + params["bias"]], axis=1)


def test_the_loss_is_the_cross_entropy_of_the_image_noised_at_a_drawn_time():
    params = {"slope": jnp.array([0.3, 0.1, -0.2]), "bias": jnp.array(0.2)}
    classifier = NoisyClassifier(params, brightness, VE)
    x0, labels, keys = jax.random.uniform(jax.random.key(3), (6, 4, 4, 3)), jnp.array([0, 1, 1, 0, 1, 0]), keys_of(6)
    found = classifier_training.loss(UNIFORM, classifier, x0, labels, keys)
    alone = [
        classifier_training.loss(UNIFORM, classifier, x0[i : i + 1], labels[i : i + 1], keys[i : i + 1])
        for i in range(6)
    ]
    np.testing.assert_allclose(found, np.concatenate(alone), rtol=1e-10)
    key_t, key_z = jax.random.split(keys[2])
    t = jax.random.uniform(jax.random.split(key_t)[1], (), minval=1e-5, maxval=1.0)
    s = 0.01 * 5000**t
    unit = 2 * (x0[2] + s * jax.random.normal(key_z, x0[2].shape)) - 1
    u = 0.5 + 0.1 * jnp.log(2 * s)
    logit = jnp.exp(0.3 + 0.1 * u - 0.2 * u**2) * unit.mean() / jnp.sqrt(1 + (2 * s) ** 2) + 0.2
    np.testing.assert_allclose(found[2], jnp.log1p(jnp.exp(-logit)), rtol=1e-6)


def test_training_finds_the_accuracy_of_bayes_at_every_noise_scale():
    """Flat images of 0.5 +- 0.1: with noise s on 4 x 4 x 3 pixels Bayes is right with Phi(0.1 sqrt(48)/s)."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 512)
    images = np.broadcast_to(0.5 + 0.1 * (2.0 * labels[:, None, None, None] - 1), (512, 4, 4, 3)).astype(np.float32)
    params = {"slope": jnp.zeros(3), "bias": jnp.zeros(())}
    optimizer = optax.adam(0.1)

    @jax.jit
    def update(params, state, key):
        def mean(params):
            classifier = NoisyClassifier(params, brightness, VE)
            keys = jax.random.split(key, 512)
            return classifier_training.loss(UNIFORM, classifier, jnp.asarray(images), jnp.asarray(labels), keys).mean()

        value, gradients = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for step in range(60):
        params, state, value = update(params, state, jax.random.key(step))
    assert value < 0.6 < np.log(2)
    scales = (0.1, 1.0, 10.0)
    found = classifier_training.accuracies(NoisyClassifier(params, brightness, VE), images, labels, scales)
    for s, share in zip(scales, found, strict=True):
        assert abs(share - stats.norm.cdf(0.1 * np.sqrt(48) / s)) < 0.05, (s, share)
