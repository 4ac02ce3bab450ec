import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ld3_cases import SigmaTime
from sampling_oracles import Gaussian

from sampling import learned, multistep
from sampling.learned import Schedule
from sde_lib import VPSDE
from training import ld3, ld3_learning
from training.ld3_learning import Pairs, Problem, Settings

GAUSSIAN = Gaussian(0.3, 0.5)
SHAPE = (2, 2, 1)


def problem(solver="dpmpp", order=2, radius=0.0, variant="", where=None):
    where = where or ld3.Space(SigmaTime(), 20.0, 0.02, to_zero=True)
    objective = ld3.Objective(ld3.l2, 20.0, radius)
    return Problem(objective, where, ld3.Student(solver, order, variant), GAUSSIAN)


def scattered(params, size=0.3):
    random = np.random.RandomState(1)
    return jax.tree.map(lambda leaf: leaf + size * jnp.asarray(random.randn(*leaf.shape)), params)


def teacher_pairs(count=12, valid=4):
    noise = np.random.RandomState(0).randn(count + valid, *SHAPE)
    targets = np.asarray(GAUSSIAN.flow(20 * noise, 20.0, 0.0))
    return Pairs(noise[:count], targets[:count], noise[count:], targets[count:])


@pytest.mark.parametrize(
    "solver, order, method, radius",
    [("dpmpp", 2, "gs", 0.1), ("unipc", 3, "s4s", 0.0), ("ipndm", 2, "ld3", 0.0), ("heun", 0, "ld3", 0.0)],
)
def test_the_gradient_step_by_step_is_that_of_the_loss(solver, order, method, radius):
    case = problem(solver, order, radius)
    params = scattered(ld3.initial(case.space, case.student, 4, method))
    noise, target = jnp.asarray(np.random.RandomState(2).randn(2, 2, *SHAPE))
    position = jnp.array([2, 0])
    if radius:
        params["latents"] = jnp.asarray(np.random.RandomState(3).randn(3, *SHAPE))

    def summed(params):
        each = ld3.loss(case.objective, case.space, case.student, GAUSSIAN, params, noise, target, position)
        return each.sum(), each

    (_, each), wanted = jax.jit(jax.value_and_grad(summed, has_aux=True))(params)
    found_each, found = ld3_learning.losses_and_gradient(case, params, noise, target, position)
    np.testing.assert_allclose(found_each, each, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13), found, wanted)


@pytest.mark.parametrize("solver, order, variant", [("unipc", 3, "bh1"), ("dpmpp", 2, ""), ("ipndm", 3, "")])
@pytest.mark.parametrize("method", ["ld3", "s4s", "gs"])
@pytest.mark.parametrize("clock", ["ve", "vp"])
def test_what_is_stored_samples_as_what_was_learned(solver, order, variant, method, clock):
    sde = SigmaTime() if clock == "ve" else VPSDE()
    where = ld3.Space(sde, 20.0, 0.05, to_zero=clock == "ve")
    case = problem(solver, order, variant=variant, where=where)
    params = scattered(ld3.initial(where, case.student, 4, method))
    grid, coefficients = ld3.frozen(where, case.student, params)
    stored = learned.parse(json.loads(learned.to_json(Schedule(solver, grid, order, variant, coefficients))), "stored")
    assert stored.method == ("gs" if method == "gs" else "s4s" if method == "s4s" else "ld3")
    noise = jnp.asarray(np.random.RandomState(0).randn(2, *SHAPE))
    step, init = ld3.step_of(case.student, params)
    wanted = ld3.solve(where, case.student, params, GAUSSIAN, 20 * noise)
    state = init(20 * noise)
    table = jax.tree.map(jnp.asarray, learned.rows(stored, sde))
    for number in range(4):
        state, _ = step(GAUSSIAN, state, jax.tree.map(lambda leaf, n=number: leaf[n], table))
    np.testing.assert_allclose(state.y, wanted, rtol=1e-9, atol=1e-10)


def test_all_devices_share_a_microbatch_in_two_programs_for_all_steps():
    case = problem("unipc", 3)
    params = scattered(ld3.initial(case.space, case.student, 5, "gs"))
    noise, target = jnp.asarray(np.random.RandomState(2).randn(2, 4, *SHAPE))
    alone = [ld3_learning.losses_and_gradient(case, params, noise[i : i + 1], target[i : i + 1], i) for i in range(4)]
    before = ld3_learning._forward._cache_size(), ld3_learning._backward._cache_size()
    each, gradient = ld3_learning.losses_and_gradient(case, params, noise, target, jnp.arange(4))
    after = ld3_learning._forward._cache_size(), ld3_learning._backward._cache_size()
    assert np.subtract(after, before).tolist() == [1, 1]
    assert {shard.data.shape for shard in each.addressable_shards} == {(4 // jax.device_count(),)}
    np.testing.assert_allclose(each, np.concatenate([part for part, _ in alone]), rtol=1e-12)
    summed = jax.tree.map(lambda *leaves: sum(leaves), *(part for _, part in alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), gradient, summed)


def test_an_update_takes_the_mean_over_its_pairs_however_they_are_called():
    case, pairs = problem(), teacher_pairs(6)
    params = scattered(ld3.initial(case.space, case.student, 3))

    def mean(params):
        noise, targets = jnp.asarray(pairs.noise), jnp.asarray(pairs.targets)
        return ld3.loss(case.objective, case.space, case.student, GAUSSIAN, params, noise, targets).mean()

    value, wanted = jax.jit(jax.value_and_grad(mean))(params)
    loss, found = ld3_learning._of_batch(case, params, pairs, Settings(10, microbatch=2), 0)
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13), found, wanted)


def learn(folder, case=None, pairs=None, lr=0.05, n=3, **settings):
    case, told = case or problem(), []
    optimizer = optax.adam(lr)
    params = ld3.initial(case.space, case.student, n)
    settings = Settings(**{"num_steps": 20, "microbatch": 4, "valid_every": 5} | settings)
    found = ld3_learning.learn(
        case, params, pairs or teacher_pairs(), settings, optimizer, folder, lambda *facts: told.append(facts)
    )
    return found, told


@pytest.mark.parametrize("batch_size, radius", [(0, 0.0), (4, 0.02)])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, batch_size, radius):
    whole, told = learn(tmp_path / "whole", problem(radius=radius), batch_size=batch_size)
    learn(tmp_path / "parts", problem(radius=radius), batch_size=batch_size, num_steps=10)
    parts, later = learn(tmp_path / "parts", problem(radius=radius), batch_size=batch_size)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert [facts[1:] for facts in told if facts[2] > 10] == [facts[1:] for facts in later]


def test_learning_ends_closer_to_the_teacher_and_keeps_the_best(tmp_path):
    pairs, case = teacher_pairs(), problem()
    best, told = learn(tmp_path, case, pairs, num_steps=60, valid_every=10)
    losses = [loss for _, loss, _ in told]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 3
    found = ld3_learning.judge(case, best, pairs.valid_noise, pairs.valid_targets, 3).mean()
    np.testing.assert_allclose(found, losses[-1], rtol=1e-12)
    lines = [json.loads(line) for line in (tmp_path / ld3_learning.LOG_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(0, 61, 10)) and "train" in lines[1]
    assert min(line["valid"] for line in lines) == losses[-1]


def test_a_run_that_diverges_keeps_its_last_good_state(tmp_path):
    best, _ = learn(tmp_path, num_steps=5)
    before = (tmp_path / "train_state.msgpack").read_bytes()
    pairs = teacher_pairs()
    pairs.targets[0] = np.nan
    with pytest.raises(FloatingPointError, match="LD3's loss is nan at update 6; the best schedule so far.*optim.lr"):
        learn(tmp_path, pairs=pairs)
    assert (tmp_path / "train_state.msgpack").read_bytes() == before
    pairs = teacher_pairs()
    pairs.valid_targets[0] = np.nan
    with pytest.raises(FloatingPointError, match="validation loss is nan after 0 updates"):
        learn(tmp_path / "other", pairs=pairs)


def test_each_round_of_batches_takes_every_pair_once():
    settings = Settings(10, batch_size=4)
    rounds = [np.concatenate([ld3_learning._batch(settings, 12, 3 * r + k) for k in range(3)]) for r in range(2)]
    assert [sorted(indices) for indices in rounds] == [list(range(12))] * 2
    assert rounds[0].tolist() != rounds[1].tolist()
    np.testing.assert_array_equal(ld3_learning._batch(Settings(10), 12, 5), range(12))


def test_the_steps_are_compiled_once_for_any_number_of_them():
    case = problem("dpmpp", 1)
    noise = jnp.zeros((2, *SHAPE))
    for n in (2, 3, 5):
        params = ld3.initial(case.space, case.student, n)
        ld3_learning.losses_and_gradient(case, params, noise, noise, jnp.arange(2))
        sizes = ld3_learning._forward._cache_size(), ld3_learning._backward._cache_size()
        first = sizes if n == 2 else first  # noqa: F821
    assert sizes == first


@pytest.mark.parametrize(
    "pairs, settings, message",
    [
        (teacher_pairs(0, 4), {}, "0 pairs to learn from and 4 to be judged on"),
        (teacher_pairs(4, 0), {}, "4 pairs to learn from and 0 to be judged on"),
        (teacher_pairs(12, 4), {"batch_size": 6}, "6 pairs an update.*no multiple of config.ld3.microbatch=4"),
    ],
)
def test_too_few_pairs_are_refused(tmp_path, pairs, settings, message):
    with pytest.raises(ValueError, match=message):
        learn(tmp_path, pairs=pairs, **settings)


def test_solvers_have_as_many_history_weights_as_the_table():
    assert ld3.initial(problem().space, problem().student, 3, "s4s")["weights"].shape == (3, multistep.HISTORY)
