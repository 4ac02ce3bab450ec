"""One-step solvers: the published Heun trajectory, order from a closed form, call counts, the end at zero noise."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import CallLog, Counted, Gaussian, Mixture

from sampling import base, single_step, time_grids
from sampling.base import TimeGrid

GOLDEN = pathlib.Path(__file__).parent / "goldens" / "diffusers" / "sched_heun.npz"
DATA = Gaussian(0.3, 0.5)
SOLVERS = sorted(single_step.STEPS)


def run(solver, grid, denoiser, y, chunk=40):
    step, state = single_step.STEPS[solver], single_step.init(jnp.asarray(y))
    return base.integrate(step, denoiser, state, single_step.rows(grid), chunk)[0].y


def test_heun_ends_where_the_diffusers_scheduler_does():
    golden = np.load(GOLDEN)
    denoiser = Mixture(jnp.asarray(golden["pi"]), jnp.asarray(golden["mu"]), jnp.sqrt(golden["s2"]))
    ladder = np.interp(
        np.linspace(999, 0, 8), np.arange(1000), time_grids.ddpm_noise_scales(np.linspace(1e-4, 0.02, 1000))
    )
    s = time_grids.with_zero(ladder)
    rows = single_step.rows(TimeGrid(s, s))
    assert single_step.num_calls(rows) == len(golden["model_output"]) == 15
    np.testing.assert_allclose(
        run("heun", TimeGrid(s, s), denoiser, golden["x"][0]), golden["x"][-1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_global_error_falls_at_order_two(solver):
    y, counts, errors = np.full((1, 1, 1, 1), 2.0), (20, 40, 80), []
    for n in counts:
        s = np.geomspace(3.0, 0.05, n + 1)
        errors.append(abs(run(solver, TimeGrid(s, s), DATA, y).item() - DATA.flow(2.0, 3.0, 0.05)))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.15, f"{solver}: order {slope:.2f}, errors {errors}"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("last, calls", [(0.0, 7), (0.1, 8)])
def test_two_calls_a_step_and_one_for_the_step_to_zero(solver, last, calls):
    s = np.array([9.0, 3.0, 1.0, 0.3, last])
    log = CallLog()
    jax.block_until_ready(run(solver, TimeGrid(s, s), Counted(DATA, log), np.ones((2, 1, 1, 1)), chunk=3))
    jax.effects_barrier()
    assert len(log.noise_scales) == single_step.num_calls(single_step.rows(TimeGrid(s, s))) == calls


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_network_is_told_the_scales_of_the_grid(solver):
    s, told = np.array([4.0, 1.0, 0.25]), np.array([4.4, 1.1, 0.275])
    log = CallLog()
    jax.block_until_ready(run(solver, TimeGrid(s, told), Counted(DATA, log), np.ones((1, 1, 1, 1))))
    jax.effects_barrier()
    second = {"heun": told[1:], "dpmpp_2s": np.sqrt(told[:-1] * told[1:])}[solver]
    np.testing.assert_allclose(log.noise_scales, np.stack([told[:-1], second], axis=1).ravel(), rtol=1e-12)


def test_heun_follows_constant_eps_exactly_whatever_the_network_is_told():
    s, told, eps = np.array([4.0, 1.0, 0.25, 0.0]), np.array([4.4, 0.9, 0.3, 0.0]), 0.7
    y = run("heun", TimeGrid(s, told), jax.tree_util.Partial(lambda y, s: y - s * eps), np.full((1, 1, 1, 1), 3.0))
    np.testing.assert_allclose(y, 3.0 - 4.0 * eps, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_last_step_to_zero_returns_the_estimate(solver):
    s = np.array([5.0, 0.5, 0.0])
    step, state = single_step.STEPS[solver], single_step.init(jnp.full((1, 1, 1, 1), 3.0))
    state, _ = base.integrate(step, DATA, state, single_step.rows(TimeGrid(s, s)))
    np.testing.assert_allclose(state.y, state.x0, rtol=1e-14)
    assert np.isfinite(state.y).all()


def test_a_sampler_starts_from_the_key_of_each_image_and_records_on_request():
    s = np.array([5.0, 0.5, 0.0])
    sampler = single_step.create("heun", DATA, TimeGrid(s, s), (2, 3, 1), prior_scale=5.0, record=True)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(3))
    operands, start = sampler.begin(keys)
    np.testing.assert_array_equal(start.y[2], 5.0 * jax.random.normal(keys[2], (2, 3, 1), jnp.float32))
    end, (states, estimates) = base.integrate(sampler.step, operands, start, sampler.rows)
    assert sampler.nfe == 3 and states.shape == estimates.shape == (2, 3, 2, 3, 1)
    np.testing.assert_array_equal(sampler.image(end), states[-1])


def test_an_unknown_one_step_solver_names_the_choices():
    with pytest.raises(ValueError, match=r"method='rk4' is no one-step solver; choose one of \['dpmpp_2s', 'heun'\]"):
        single_step.create("rk4", DATA, TimeGrid(np.ones(2), np.ones(2)), (1, 1, 1), 1.0)
