import functools

import jax.numpy as jnp
import numpy as np
import pytest
from ld3_cases import golden, mixture, pairs, space

from training import ld3, ld3_published
from training.ld3_published import Learner, settings_for

RUNS = golden("runs.npz")


@functools.cache
def recorded(run):
    """The run with its settings: (what was learned, learner)."""
    train, valid, valid_batch, rounds = {"C": (8, 4, 4, (2, 2)), "K": (24, 4, 2, (2, 6))}[run]
    noise, targets, _, _ = pairs(run, train + valid)
    where = space("ve_edm", bound="released")
    student = ld3.Student("unipc", 3, "bh1", published_gradient=True) if run == "C" else ld3.Student("ipndm", 3)
    loss = functools.partial(ld3.loss, ld3.Objective(ld3.l2, 80.0), where, student, mixture())
    settings = settings_for(5, 192, rounds=rounds, valid_batch_size=valid_batch, seed=None)
    learner = Learner(loss, ld3.initial(where, student, 5), noise, targets, train, settings)
    return learner.run(), where


@pytest.mark.parametrize("run", ["C", "K"])
def test_every_look_of_the_published_run_is_reproduced(run):
    found, where = recorded(run)
    names = {"valid": "val", "train": "train", "iteration": "iter", "round": "round", "lr1": "lr1", "lr2": "lr2"}
    for ours, theirs in (names | {"on_one_batch": "eval_on_one"}).items():
        values = np.array([getattr(look, ours) for look in found.looks], float)
        np.testing.assert_allclose(values, RUNS[f"{run}/hist_{theirs}"], atol=1e-8, rtol=0, err_msg=ours)
    np.testing.assert_array_equal(found.accepted, RUNS[f"{run}/accepted"])
    shifts = np.stack([look.shifts for look in found.looks])[RUNS[f"{run}/looks"]]
    np.testing.assert_allclose(shifts, RUNS[f"{run}/hist_params2"], atol=1e-8)
    for params, grid in ((found.grid_only, "grid_v1"), (found.best, "grid_v2_t1")):
        np.testing.assert_allclose(ld3.grid(where, params).s, RUNS[f"{run}/{grid}"], rtol=1e-8)
    np.testing.assert_allclose(ld3.grid(where, found.best).s_model, RUNS[f"{run}/grid_v2_t2"], rtol=1e-8)
    np.testing.assert_allclose(found.train_noise[:, 0, ::4, ::4], RUNS[f"{run}/final_train_latents"], atol=1e-8)
    np.testing.assert_allclose(found.valid_noise[:, 0, ::4, ::4], RUNS[f"{run}/final_valid_latents"], atol=1e-8)


def _learner(loss, count=4, **settings):
    noise = np.random.RandomState(0).randn(count, 2, 1, 1)
    params = {"logits": jnp.ones(3), "shifts": jnp.zeros(3)}
    return Learner(loss, params, noise, noise, count - 2, settings_for(2, 2, batch_size=2, **settings))


def test_a_run_that_diverges_stops_and_has_shown_its_best_state():
    seen = []

    def loss(params, z, target):
        # Fine at first; not a number as soon as the logits have moved.
        return jnp.where(jnp.all(params["logits"] == 1.0), 1.0, jnp.nan) + 0 * z.sum((1, 2, 3)) + params["logits"].sum()

    learner = _learner(loss)
    learner.on_look = seen.append
    with pytest.raises(
        FloatingPointError, match="validation loss is nan after 1 updates; the best grid so far is kept"
    ):
        learner.run()
    assert np.isfinite(seen[0].valid) and np.isfinite(seen[0].logits).all() and len(seen) == 1


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match=r"1 pairs to learn from and 2 to be judged on.*at least 2"):
        _learner(lambda params, z, target: z.sum((1, 2, 3)), count=3)


def test_the_published_settings_follow_from_steps_and_dimension():
    found = settings_for(10, 3072)
    assert (found.radius, found.lr2, found.shift_lr) == (0.03072, 0.01, 1.2)
    assert settings_for(6, 192).radius == 0.00533333 and settings_for(6, 192).lr2 == 0.01666667


def test_learning_stops_once_the_rate_of_the_shifts_has_hit_its_floor_often_enough():
    flat = _learner(
        lambda params, z, target: 1 + 0 * params["logits"].sum() + 0 * z.sum((1, 2, 3)), 14, rounds=(0, 200)
    )
    flat.lr2 = flat.settings.min_lr2
    found = flat.run()
    assert flat.hits == ld3_published.Published.most_hits and found.looks[-1].round < 199


def test_a_published_run_that_was_stopped_goes_on_as_it_would_have(tmp_path):
    def loss(params, z, target):
        weights = jnp.sum((params["logits"] - 0.5) ** 2) + jnp.sum((params["shifts"] - 0.1) ** 2)
        return weights + jnp.mean((z - target) ** 2, (1, 2, 3))

    whole = _learner(loss, 8, rounds=(2, 3)).run()
    _learner(loss, 8, rounds=(2, 1)).run(tmp_path)
    found = _learner(loss, 8, rounds=(2, 3)).run(tmp_path)
    np.testing.assert_array_equal([look.valid for look in found.looks], [look.valid for look in whole.looks])
    np.testing.assert_array_equal(found.best["logits"], whole.best["logits"])
    np.testing.assert_array_equal(found.train_noise, whole.train_noise)
    assert found.accepted == whole.accepted and found.looks[3].on_one_batch is True


def test_pairs_come_in_another_order_every_time_unless_there_is_no_seed():
    learner = _learner(lambda params, z, target: z.sum((1, 2, 3)), 14)
    first, second = (np.concatenate(list(learner._batches(12))) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12)) and first.tolist() != second.tolist()
    ordered = _learner(lambda params, z, target: z.sum((1, 2, 3)), 14, seed=None)
    np.testing.assert_array_equal(np.concatenate(list(ordered._batches(12))), range(12))
