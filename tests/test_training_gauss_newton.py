import jax.numpy as jnp
import numpy as np
import pytest
from ld3_cases import SigmaTime
from sampling_oracles import Gaussian

from training import gauss_newton, ld3, ld3_learning
from training.ld3_learning import Pairs, Problem, Settings

GAUSSIAN = Gaussian(0.3, 0.5)


def linear(matrix, target):
    def residuals(params):
        return matrix @ np.concatenate([params["logits"][2:], params["shifts"][1:-1]]) - target

    return residuals


def test_one_update_solves_a_linear_problem_up_to_the_damping():
    random = np.random.RandomState(0)
    matrix, target = random.randn(30, 4), random.randn(30)
    params = {"logits": jnp.ones(4), "shifts": jnp.zeros(4)}
    damping = gauss_newton.Damping(jnp.asarray(1e-12))
    found, after, before = gauss_newton.update(linear(matrix, target), params, damping)
    wanted = np.linalg.lstsq(matrix, target, rcond=None)[0]
    np.testing.assert_allclose(np.concatenate([found["logits"][2:], found["shifts"][1:-1]]), wanted, rtol=1e-8)
    np.testing.assert_array_equal(found["logits"][:2], 1.0)
    np.testing.assert_array_equal(found["shifts"][jnp.array([0, 3])], 0.0)
    np.testing.assert_allclose(before, np.mean((matrix @ [1, 1, 0, 0] - target) ** 2), rtol=1e-12)
    assert float(after.value) == pytest.approx(1e-7)


def test_damping_is_in_units_of_the_curvature():
    matrix, target = np.diag([1.0, 100.0, 1.0, 1.0]), np.array([2.0, 200.0, 0.0, 0.0])
    params = {"logits": jnp.zeros(4), "shifts": jnp.zeros(4)}
    found, after, _ = gauss_newton.update(linear(matrix, target), params, gauss_newton.Damping(jnp.asarray(0.25)))
    np.testing.assert_allclose(found["logits"][2:], 2 / 1.25, rtol=1e-9)
    assert float(after.value) == pytest.approx(0.25 / 5)  # a gain is followed by a bolder update


def test_an_update_that_would_do_harm_is_not_taken():
    def residuals(params):
        return np.array([1.0 + float(jnp.abs(params["logits"][2]))])  # a kink: its slope points nowhere better

    params = {"logits": jnp.zeros(3), "shifts": jnp.zeros(3)}
    found, damping, _ = gauss_newton.update(residuals, params, gauss_newton.init(params))
    np.testing.assert_array_equal(found["logits"], params["logits"])
    assert float(damping.value) == pytest.approx(1e-3 * 5**6)


def test_only_numbers_that_change_something_are_free():
    params = ld3.initial(ld3.Space(SigmaTime(), 20.0, 0.05), ld3.Student("ddim"), 4, "gs")
    flat = sorted(params)
    assert flat == ["logits", "on_eps", "on_x0", "shifts"]
    assert len(gauss_newton.free(params)) == 3 + 3 + 10 + 10
    three = params | {"logits": jnp.ones(5)}
    places = gauss_newton.free(three)
    assert places[:3].tolist() == [2, 3, 4] and places[3] == 5 and 6 not in places


def test_a_few_updates_learn_a_grid_and_a_stopped_run_goes_on(tmp_path):
    noise = np.random.RandomState(0).randn(12, 2, 2, 1)
    targets = np.asarray(GAUSSIAN.flow(20 * noise, 20.0, 0.0))
    pairs = Pairs(noise[:8], targets[:8], noise[8:], targets[8:])
    space = ld3.Space(SigmaTime(), 20.0, 0.02, to_zero=True)
    problem = Problem(ld3.Objective(ld3.l2, 20.0), space, ld3.Student("dpmpp", 2), GAUSSIAN)

    def learn(folder, n):
        settings, losses = Settings(n, 4, 4, 1), []
        start = ld3.initial(space, problem.student, 3)
        best = ld3_learning.learn(
            problem, start, pairs, settings, None, folder, lambda params, loss, step: losses.append(loss)
        )
        return best, losses

    whole, losses = learn(tmp_path / "whole", 6)
    assert losses[-1] < losses[0] / 10
    learn(tmp_path / "parts", 3)
    parts, _ = learn(tmp_path / "parts", 6)
    np.testing.assert_array_equal(whole["logits"], parts["logits"])
