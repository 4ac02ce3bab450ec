"""The adaptive flow: measured orders of the pairs, closed-form Gaussian flows, exact counts, both directions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from sampling_oracles import Mixture

from sampling import adaptive, base
from sampling.adaptive import SOLVERS, Adaptive

MEAN, STD = 0.3, 0.5
SHAPE = (4, 4, 3)
KEYS = jax.random.split(jax.random.key(3), 4)


def gaussian(y, s):
    """The exact denoiser of data N(MEAN, STD^2 I), noise scales [b]."""
    return MEAN + (y - MEAN) * (STD**2 / (STD**2 + s**2))[:, None, None, None]


def gaussian_flow(y, s, s_next):
    return MEAN + (y - MEAN) * np.sqrt((STD**2 + s_next**2) / (STD**2 + s**2))


def mixture(y, s):
    model = Mixture(jnp.array([0.3, 0.7]), jnp.array([[0.1], [0.9]]) * jnp.ones((2, 12)), jnp.array([0.1, 0.2]))
    return jax.vmap(lambda y, s: model(y[None], s)[0])(y, s)


# One compilation for each setting, denoiser, shape and range.
flow = jax.jit(adaptive.transport, static_argnums=(0, 1, 3, 4))


@pytest.fixture(scope="module")
def y():
    return 10 * jax.random.normal(jax.random.key(0), (3, *SHAPE))


def fixed_steps(solver, count, y, s, s_next):
    """`rk_step` with equal steps; also the largest error estimate relative to the step."""
    lams = np.linspace(-np.log(s), -np.log(s_next), count + 1)
    lam = jnp.full(len(y), lams[0])
    k, h, estimates = adaptive.slope(gaussian, y, lam), jnp.full(len(y), lams[1] - lams[0]), []
    for at in lams[:-1]:
        y, k, error = adaptive.rk_step(SOLVERS[solver], gaussian, y, k, jnp.full(len(y), at), h)
        estimates.append(float(jnp.abs(error).max()))
    return y, max(estimates)


@pytest.mark.parametrize(("solver", "order"), [("bosh3", 3), ("dopri5", 5)])
def test_the_error_and_its_estimate_fall_at_the_stated_orders(solver, order, y):
    counts = np.array([16, 32, 64])
    exact = gaussian_flow(y, 10.0, 0.1)
    runs = [fixed_steps(solver, n, y, 10.0, 0.1) for n in counts]
    errors = [float(jnp.abs(run[0] - exact).max()) for run in runs]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.35, f"{slope:.2f}, {errors}"
    # The estimate is the local error of the lower order: order again, for a step that is one order shorter.
    slope = -np.polyfit(np.log(counts), np.log([run[1] for run in runs]), 1)[0]
    assert abs(slope - order) < 0.35, f"estimate: {slope:.2f}"


@pytest.mark.parametrize(("solver", "reference"), [("dopri5", scipy.integrate.RK45), ("bosh3", scipy.integrate.RK23)])
def test_one_step_is_scipys(solver, reference):
    y = np.array([2.0, -1.0, 0.7])

    def f(lam, y):
        return np.asarray(gaussian(jnp.asarray(y).reshape(1, 1, 1, 3), jnp.exp(-jnp.array([lam])))).ravel() - y

    h = 0.37
    stages = np.empty((reference.n_stages + 1, 3))
    rk_step = scipy.integrate._ivp.rk.rk_step
    new, k = rk_step(f, 0.2, y, f(0.2, y), h, reference.A, reference.B, reference.C, stages)
    start = jnp.asarray(y).reshape(1, 1, 1, 3)
    lam, step = jnp.array([0.2]), jnp.array([h])
    ours, last, error = adaptive.rk_step(
        SOLVERS[solver], gaussian, start, adaptive.slope(gaussian, start, lam), lam, step
    )
    np.testing.assert_allclose(np.ravel(ours), new, rtol=1e-12)
    np.testing.assert_allclose(np.ravel(last), k, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.ravel(error)), np.abs(stages.T @ reference.E * h), rtol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_adaptive_flow_is_the_exact_map_and_a_smaller_tolerance_costs_more(solver, y):
    exact, errors, calls = gaussian_flow(y, 10.0, 0.1), [], []
    for tolerance in (1e-3, 1e-5):
        out, count = flow(Adaptive(solver, tolerance, tolerance), gaussian, y, 10.0, 0.1)
        errors.append(float(jnp.abs(out - exact).max()))
        calls.append(int(count.max()))
    assert errors[0] > 8 * errors[1] and errors[1] < 1e-4, errors
    assert calls[0] < calls[1] < 500, calls


def test_rtol_counts_for_large_values_and_atol_for_small_ones(y):
    large = 1e4 * y
    relative = flow(Adaptive(rtol=1e-3, atol=1e-9), gaussian, large, 10.0, 0.1)[1]
    absolute = flow(Adaptive(rtol=1e-9, atol=1e-3), gaussian, large, 10.0, 0.1)[1]
    assert int(absolute.max()) > 2 * int(relative.max())


def test_latent_and_image_invert_one_another():
    """The round trip the issue asks for, on a model that is not linear."""
    settings = Adaptive()
    mode = jnp.array([0.1, 0.9, 0.1, 0.9], jnp.float32)[:, None, None, None]
    image = mode + 0.15 * jax.random.normal(jax.random.key(1), (4, 2, 2, 3), jnp.float32)
    latent, up = flow(settings, mixture, image, 0.01, 50.0)
    again, down = flow(settings, mixture, latent, 50.0, 0.01)
    assert float(jnp.abs(again - image).max()) < 1e-3
    assert 0.3 < float(jnp.std(latent / 50)) < 3  # noise, and not the image again
    assert int(up.min()) > 20 and int(down.min()) > 20


def test_every_network_call_is_counted(y):
    seen = []

    def counted(y, s):
        jax.debug.callback(lambda s: seen.append(np.array(s)), s, ordered=True)
        return gaussian(y, s)

    _, calls = adaptive.transport(Adaptive(), counted, y[:1], 10.0, 0.1)
    jax.effects_barrier()
    assert len(seen) == int(calls[0]) > 30


def test_an_image_does_not_depend_on_its_batch(y):
    hard = y.at[1].multiply(100)  # takes other steps than its neighbours
    together, calls = flow(Adaptive(), gaussian, hard, 10.0, 0.1)
    for i in range(3):
        alone, count = flow(Adaptive(), gaussian, hard[i : i + 1], 10.0, 0.1)
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-12)
        assert int(count[0]) == int(calls[i])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["std"], meta_fields=["broken"])
@dataclasses.dataclass(frozen=True)
class Operand:
    """A denoiser as the loop takes it: a pytree. `broken`: one image turns into NaN on the way."""

    std: float
    broken: bool = False

    def __call__(self, y, s):
        good = MEAN + (y - MEAN) * (self.std**2 / (self.std**2 + s**2))[:, None, None, None]
        return good.at[2].set(jnp.where(s[2] < 0.5, jnp.nan, good[2])) if self.broken else good


def draw(record=False, denoise=True, broken=False):
    sampler = adaptive.create(Adaptive(), Operand(STD, broken), SHAPE, 10.0, 0.01, 10.0, denoise, record)
    state, records = base.integrate(sampler.step, *sampler.begin(KEYS), sampler.rows, chunk=8)
    return sampler, state, records


def test_the_sampler_draws_the_exact_image_of_its_noise_and_denoises_the_end_for_nothing():
    sampler, state, records = draw(record=True)
    noise = 10 * jax.vmap(lambda key: jax.random.normal(key, SHAPE, jnp.float32))(KEYS)
    end = gaussian_flow(np.asarray(noise, np.float64), 10.0, 0.01)
    np.testing.assert_allclose(state.y, end, atol=2e-3)
    denoised = MEAN + (end - MEAN) * STD**2 / (STD**2 + 0.01**2)
    np.testing.assert_allclose(sampler.image(state), denoised, atol=2e-3)
    assert sampler.nfe == 0 and sampler.calls(state).shape == (4,)
    assert int(sampler.calls(state).max()) % 6 == 1  # six calls an attempt, one to begin
    assert records[0].shape == (adaptive.SEGMENTS, 4, *SHAPE)
    np.testing.assert_array_equal(records[0][-1], state.y)
    np.testing.assert_array_equal(records[1][-1], sampler.image(state))


def test_without_the_last_jump_the_state_is_the_image():
    sampler, state, _ = draw(denoise=False)
    np.testing.assert_array_equal(sampler.image(state), state.y)


def test_a_network_that_is_not_finite_ends_and_gives_nan_for_its_image_alone(monkeypatch):
    monkeypatch.setattr(adaptive, "MOST_ATTEMPTS", 20)
    sampler, state, _ = draw(broken=True)
    image = sampler.image(state)
    assert np.isnan(image[2]).all() and np.isfinite(image[jnp.array([0, 1, 3])]).all()


def test_settings_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match=r"sampling.ode.solver='rk4'.*\['bosh3', 'dopri5'\]"):
        Adaptive("rk4")
    with pytest.raises(ValueError, match=r"rtol=-1 and atol=0"):
        Adaptive(rtol=-1, atol=0)
    with pytest.raises(ValueError, match="two different positive noise scales"):
        adaptive.rows(1.0, 1.0)
