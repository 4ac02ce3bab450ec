"""Stochastic samplers: exact moments of the real loop on Gaussian data, measured orders, calls, keys, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import CallLog, Counted, Gaussian

from sampling import base, multistep, sde_solvers, single_step
from sampling.base import TimeGrid
from sampling.sde_solvers import Churn, FoldedNoise, NoisyStep, Operands, PlayedNoise, RestartInterval

MEAN, STD = 0.3, 0.5
DATA = Gaussian(MEAN, STD)
START, FIRST, LAST = 2.0, 10.0, 0.05  # mean at the start (not that of the data), first and last noise scale
HEUN, MULTI = (single_step.heun_step, single_step.init), (multistep.step, multistep.init)


def grid_of(n, last=LAST):
    s = np.geomspace(FIRST, last, n + 1)
    return TimeGrid(s, s)


def moments(solver, rows):
    """Mean and variance of the result, exact: all steps are affine in the noises, so unit noises give the whole map."""
    step, init = solver
    n = len(rows.index)
    y = np.full((n + 2, 1, 1, 1), START)
    y[1] += np.sqrt(STD**2 + FIRST**2)  # image 0 has no noise, image 1 one standard deviation of the start
    impulses = np.zeros((n, n + 2, 1, 1, 1))
    impulses[np.arange(n), np.arange(n) + 2] = 1.0  # image i + 2 has noise 1 at step i alone
    operands = Operands(DATA, PlayedNoise(jnp.asarray(impulses)))
    state, _ = base.integrate(NoisyStep(step), operands, init(jnp.asarray(y)), rows)
    y = np.asarray(state.y).ravel()
    return y[0], ((y[1:] - y[0]) ** 2).sum()


def decay(s, s_next, rate=1.0):
    """How the distance of the mean from that of the data shrinks under the flow (rate 1) or an SDE (1 + tau^2)."""
    return ((STD**2 + s_next**2) / (STD**2 + s**2)) ** (rate / 2)


def check_order(errors, order, what):
    slopes = -np.diff(np.log2(np.abs(errors)))
    assert np.abs(slopes[-1] - order) < 0.3, f"{what}: orders {slopes}, errors {errors}"


CHURN = Churn(amount=4.0, s_min=0.1, s_max=5.0)


def test_churn_keeps_the_marginals_with_second_order_in_the_steps():
    mean_errors, variance_errors = [], []
    for n in (20, 40, 80):
        rows = sde_solvers.edm(grid_of(n), CHURN)
        mean, variance = moments(HEUN, rows)
        exact = MEAN + (START - MEAN) * np.prod(decay(rows.solver.s, rows.solver.s_next))
        mean_errors.append(mean - exact)
        variance_errors.append(variance - (STD**2 + LAST**2))
    check_order(mean_errors, 2, "mean")
    check_order(variance_errors, 2, "variance")
    assert abs(variance_errors[-1]) < 2e-3


def test_churn_raises_the_noise_as_in_the_published_algorithm():
    grid = TimeGrid(*[np.array([10.0, 2.0, 1.0, 0.5, 0.0])] * 2)
    rows = sde_solvers.edm(grid, Churn(amount=1.0, s_min=0.9, s_max=2.0, inflation=1.003))
    np.testing.assert_allclose(rows.solver.s, [10.0, 2.5, 1.25, 0.5])  # gamma = 1/4 inside the interval
    np.testing.assert_allclose(rows.noise_std, [0.0, 1.003 * 1.5, 1.003 * 0.75, 0.0])
    strongest = sde_solvers.edm(grid, Churn(amount=100.0))
    np.testing.assert_allclose(strongest.solver.s / grid.s[:-1], np.sqrt(2))
    assert single_step.num_calls(rows.solver) == 7


INTERVALS = [RestartInterval(0.06, 0.3, num_steps=3, repeats=2), RestartInterval(1.0, 4.0, num_steps=4, repeats=1)]


@pytest.mark.parametrize("solver, rows_of", [(HEUN, single_step.rows), (MULTI, multistep.unipc)])
def test_restart_keeps_the_marginals_with_second_order_in_the_steps(solver, rows_of):
    errors = []
    for n in (20, 40, 80):
        intervals = [RestartInterval(0.1, 0.5, n // 4, 2), RestartInterval(1.0, 4.0, n // 2, 1)]
        errors.append(moments(solver, sde_solvers.restart(rows_of, grid_of(n), intervals))[1] - (STD**2 + LAST**2))
    check_order(errors, 2, "variance")
    assert abs(errors[-1]) < 1e-3


def test_restart_climbs_from_the_grid_point_nearest_to_each_interval():
    s = np.array([10.0, 1.1, 0.5, 0.05, 0.0])
    rows = sde_solvers.restart(single_step.rows, TimeGrid(s, s), INTERVALS)
    climbs = np.flatnonzero(rows.noise_std)
    assert climbs.tolist() == [1, 7, 10]  # after one step of the grid; after 4 of the first loop and 2 more of the grid
    np.testing.assert_allclose(rows.noise_std[climbs], [np.sqrt(16 - 1.21), *[np.sqrt(0.09 - 0.0025)] * 2])
    np.testing.assert_allclose(rows.solver.s[climbs], [4.0, 0.3, 0.3])
    np.testing.assert_allclose(rows.solver.s_next[climbs + [3, 2, 2]], [1.1, 0.05, 0.05])
    np.testing.assert_allclose(
        rows.solver.s[1:][rows.noise_std[1:] == 0], rows.solver.s_next[:-1][rows.noise_std[1:] == 0]
    )
    assert single_step.num_calls(rows.solver) == 2 * (4 + 4 + 6) - 1


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order, corrector_order", [(1, 2), (3, 3)])
def test_sa_keeps_the_marginals_with_second_order_in_the_steps(tau, order, corrector_order):
    mean_errors, variance_errors = [], []
    for n in (40, 80, 160):
        grid = grid_of(n)
        mean, variance = moments(MULTI, sde_solvers.sa(grid, tau, order, corrector_order))
        rate = np.append(np.full(n - 1, 1 + tau**2), 1.0)
        mean_errors.append(mean - MEAN - (START - MEAN) * np.prod(decay(grid.s[:-1], grid.s[1:], rate)))
        variance_errors.append(variance - (STD**2 + LAST**2))
    check_order(mean_errors, 2, f"mean at tau {tau}")
    check_order(variance_errors, 2, f"variance at tau {tau}")


def test_sa_without_a_corrector_value_of_the_past_is_first_order():
    errors = [moments(MULTI, sde_solvers.sa(grid_of(n), 0.5, 1, 1))[1] - (STD**2 + LAST**2) for n in (40, 80, 160)]
    check_order(errors, 1, "variance")


@pytest.mark.parametrize("tau", [0.0, 0.7])
@pytest.mark.parametrize("order", [2, 3])
def test_sa_integrates_polynomial_estimates_exactly(order, tau):
    """x0 = lam^(order-1): the mean obeys dy/dlam = r (x0 - y), whose solution through 0 is a polynomial too."""
    s, rate = np.geomspace(3.0, 0.2, 9) ** 1.3, 1 + tau**2
    rows = sde_solvers.sa(TimeGrid(s, s), tau, order, order).solver
    lam, powers = -np.log(s), np.arange(order)
    coefficients = np.zeros(order)  # of y: c_p + (p + 1) c_{p+1}/r = [p = order - 1]
    for p in reversed(powers):
        coefficients[p] = (p == order - 1) - (coefficients[p + 1] * (p + 1) / rate if p + 1 < order else 0.0)
    y, x0 = np.polynomial.polynomial.polyval(lam, coefficients), lam ** (order - 1)
    width, n = multistep.HISTORY, 4  # a step in the middle, of full order
    history = x0[n : n - width : -1]
    predicted = rows.scale[n] * y[n] + rows.predict[n] @ history
    np.testing.assert_allclose(predicted, y[n + 1], rtol=1e-10)
    corrected = predicted + rows.correct[n + 1] @ x0[n + 1 : n + 1 - width : -1]
    np.testing.assert_allclose(corrected, y[n + 1], rtol=1e-10)


def test_sa_noise_has_the_variance_of_the_reverse_process_and_stops_before_the_image():
    s = np.array([4.0, 2.0, 0.5, 0.0])
    rows = sde_solvers.sa(TimeGrid(s, s), 1.0, 1, 1)
    # With x0 fixed, y' keeps the variance s'^2: (s'/s)^4 s^2 + noise^2 = s'^2.
    np.testing.assert_allclose(rows.noise_std[1:], np.sqrt(s[1:3] ** 2 - (s[1:3] / s[:2]) ** 4 * s[:2] ** 2))
    assert rows.noise_std[0] == 0 and rows.solver.scale[-1] == 0
    np.testing.assert_array_equal(rows.solver.predict[-1], [1.0, 0, 0, 0])
    limited = sde_solvers.sa(TimeGrid(s, s), 1.0, 1, 1, s_max=3.0)
    assert limited.noise_std[1] == 0 and limited.noise_std[2] > 0
    deterministic = sde_solvers.sa(TimeGrid(s, s), 0.0, 1, 1)
    np.testing.assert_allclose(deterministic.solver.predict, multistep.ddim(TimeGrid(s, s)).predict, atol=1e-15)


def test_sa_calls_the_network_once_a_step():
    log, grid = CallLog(), grid_of(6)
    keys = jax.random.split(jax.random.key(0), 2)
    rows = sde_solvers.sa(grid)
    state = multistep.init(jnp.ones((2, 1, 1, 1)))
    base.integrate(NoisyStep(multistep.step), Operands(Counted(DATA, log), FoldedNoise(keys)), state, rows, 4)
    jax.effects_barrier()
    np.testing.assert_allclose(log.noise_scales, grid.s[:-1])


def test_noise_depends_on_the_image_and_the_step_alone():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(jnp.arange(4))
    rows = sde_solvers.edm(grid_of(5), CHURN)

    def images(indices, chunk):
        sampler = sde_solvers.create(*HEUN, rows, single_step.num_calls(rows.solver), DATA, (2, 2, 1), FIRST)
        operands, state = sampler.begin(keys[indices])
        return base.integrate(sampler.step, operands, state, sampler.rows, chunk)[0].y

    together, alone = images(jnp.arange(4), 5), images(jnp.array([2]), 3)
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5)
    z = FoldedNoise(keys)(jnp.array(3), together)
    np.testing.assert_array_equal(z[1], jax.random.normal(jax.random.fold_in(keys[1], 4), (2, 2, 1), together.dtype))
    assert np.unique(np.asarray(z)).size == z.size


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Churn(amount=-1.0), "sampling.churn needs amount >= 0.*got -1.0"),
        (lambda: RestartInterval(0.5, 0.2, 3, 1), "sampling.restart needs 0 < s_min < s_max"),
        (
            lambda: sde_solvers.restart(single_step.rows, grid_of(5), [RestartInterval(1, 20, 3, 1)]),
            "must lie inside the grid",
        ),
        (
            lambda: sde_solvers.restart(single_step.rows, grid_of(5), [RestartInterval(9, 9.5, 3, 1)]),
            "must lie inside the grid",
        ),
        (
            lambda: sde_solvers.sa(grid_of(2), order=3),
            r"order 1 to 3 and at most the number of steps \(2\), not 3.*raise --steps",
        ),
        (lambda: sde_solvers.sa(grid_of(8), order=4), "order 1 to 3 .* not 4"),
        (lambda: sde_solvers.sa(grid_of(8), corrector_order=5), "corrector_order 1 to 4"),
        (lambda: sde_solvers.sa(grid_of(8), tau=-1.0), "sampling.tau=-1.0 must not be negative"),
    ],
)
def test_impossible_settings_say_what_to_change(call, message):
    with pytest.raises(ValueError, match=message):
        call()
