"""Classifier-free guidance as a denoiser: its law for every prediction, its interval, its calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import classifier_free
from models.classifier_free import ClassifierFree, guided
from models.denoiser import Denoiser
from sde_lib import VESDE, VPSDE

NULL = 3
T = jnp.array([0.3, 0.3])
X = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))


def network(params, x, labels, classes, low_res=None):
    """Anything that depends on all it is told."""
    out = jnp.tanh(params * x + classes[:, None, None, None]) + 0.1 * labels[:, None, None, None]
    return out if low_res is None else out + low_res


def denoiser_of(predicts="eps", sde=None, fn=network) -> Denoiser:
    made = Denoiser(jnp.float64(0.7), fn, sde or VPSDE(), predicts, "t")
    return made.given(classes=jnp.array([0, 2]))


def null_of(denoiser) -> Denoiser:
    return denoiser.given(classes=jnp.array([NULL, NULL]))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_score_and_estimate_are_the_null_one_and_scale_times_the_difference(predicts, scale):
    one = denoiser_of(predicts)
    both = guided(one, null_of(one).conditions, scale)
    s = one.sde.noise_scale(T)
    for away, towards, found in (
        (null_of(one).score(X, T), one.score(X, T), both.score(X, T)),
        (null_of(one)(X, s), one(X, s), both(X, s)),
    ):
        np.testing.assert_allclose(found, away + scale * (towards - away), rtol=1e-12, atol=1e-12)


def test_a_network_of_two_predictions_obeys_the_law_too():
    def two(params, x, labels, classes):
        return jnp.concatenate([network(params, x, labels, classes), network(2 * params, x, labels, classes)], -1)

    one = denoiser_of("both", fn=two)
    away, towards = null_of(one)(X, 0.8), one(X, 0.8)
    np.testing.assert_allclose(
        guided(one, null_of(one).conditions, 2.0)(X, 0.8), away + 2.0 * (towards - away), rtol=1e-12
    )


def test_scale_1_is_the_conditional_network_itself_and_scale_0_the_unconditional_one():
    one = denoiser_of()
    null = null_of(one).conditions
    assert guided(one, null, 1.0) is one
    np.testing.assert_array_equal(guided(one, null, 0.0)(X, 0.8), null_of(one)(X, 0.8))
    assert not isinstance(guided(one, null, 0.0), ClassifierFree), "one call is enough"
    assert [classifier_free.calls(w, (0.0, float("inf"))) for w in (0.0, 1.0, 2.0)] == [1, 1, 2]
    assert classifier_free.calls(0.0, (0.1, float("inf"))) == 2


def test_a_condition_without_a_null_is_the_same_in_both_halves():
    one = denoiser_of().given(low_res=0.3 * X)
    away, towards = null_of(one)(X, 0.8), one(X, 0.8)
    found = guided(one, {"classes": jnp.array([NULL, NULL])}, 4.0)(X, 0.8)
    np.testing.assert_allclose(found, away + 4.0 * (towards - away), rtol=1e-12)


@pytest.mark.parametrize(("s", "acts"), [(0.1, False), (0.5, True), (2.0, True), (7.0, True), (7.2, False)])
def test_outside_the_interval_the_condition_alone_is_asked_and_called_once(s, acts):
    sizes = []

    def counting(params, x, labels, classes):
        jax.debug.callback(lambda: sizes.append(len(x)))
        return network(params, x, labels, classes)

    one = denoiser_of("x0", VESDE(0.01, 50.0), counting)
    both = guided(one, null_of(one).conditions, 3.0, (0.5, 7.0))
    found = jax.jit(lambda denoiser, y: denoiser(y, jnp.float32(s)))(both, X)
    jax.effects_barrier()
    assert sizes == [4 if acts else 2]
    sizes.clear()
    expected = guided(one, null_of(one).conditions, 3.0 if acts else 1.0)(X, jnp.float32(s))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_another_scale_or_interval_compiles_nothing_anew():
    traced = []

    @jax.jit
    def call(denoiser, y):
        traced.append(1)
        return denoiser(y, 0.8)

    one = denoiser_of()
    null = null_of(one).conditions
    for scale, interval in ((2.0, (0.1, 5.0)), (4.0, (0.2, 6.0))):
        call(guided(one, null, scale, interval), X)
    assert len(traced) == 1


def test_images_of_one_batch_at_different_noise_are_each_guided_where_they_are():
    one = denoiser_of("x0", VESDE(0.01, 50.0))
    t = one.sde.time(jnp.array([0.1, 2.0]))
    found = guided(one, null_of(one).conditions, 3.0, (0.5, 7.0)).output_at(X, t)
    plain, full = one.output_at(X, t), guided(one, null_of(one).conditions, 3.0).output_at(X, t)
    np.testing.assert_allclose(found, jnp.stack([plain[0], full[1]]), rtol=1e-6)
