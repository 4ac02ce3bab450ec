"""The loop on a quadratic: schedule, average, microbatches, resumption, and the stop at a loss that is not finite."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training import loop
from training.loop import LoopSettings
from training.state import create_state, load_state

PARAMS = {"w": jnp.array([1.0, -2.0])}


class Batches:
    def __init__(self, nan_at=None, size=4):
        self.nan_at, self.size = nan_at, size

    def batch(self, step):
        image = np.random.default_rng(step).normal(size=(self.size, 2))
        return {"image": image * (np.nan if step == self.nan_at else 1)}


def loss_fn(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    return jnp.square(params["w"][None] - batch["image"] - 0.1 * noise).sum(1)


def optimizer(lr=0.1, warmup=0, grad_clip=0.0, weight_decay=0.0, schedule="constant", num_steps=10):
    return loop.create_optimizer(lr, 0.9, 1e-12, warmup, grad_clip, weight_decay, schedule, num_steps)


OPTIMIZER = optimizer()


def settings_of(num_steps, **changes):
    return LoopSettings(**(dict(num_steps=num_steps, batch_size=4, log_every=1, checkpoint_every=3) | changes))


def train(folder, settings, batches=None, **hooks):
    state = create_state(PARAMS, OPTIMIZER)
    return loop.train(loss_fn, OPTIMIZER, settings, state, batches or Batches(), 0, folder, **hooks)


def sizes(transformation, count, gradient):
    """|update| of `count` equal gradients; Adam moves by the learning rate."""
    params, found = {"w": jnp.zeros(1)}, []
    state = transformation.init(params)
    for _ in range(count):
        updates, state = transformation.update({"w": jnp.full(1, gradient)}, state, params)
        found.append(-float(updates["w"][0]))
    return found


def test_warm_up_rises_from_its_first_part_to_lr():
    np.testing.assert_allclose(sizes(optimizer(warmup=4), 6, 3.0), [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-6)


def test_cosine_ends_at_zero_after_the_last_update():
    expected = [0.05, 0.1, *(0.05 * (1 + np.cos(np.pi * np.arange(9) / 8)))]
    found = sizes(optimizer(warmup=2, schedule="cosine"), 11, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert abs(found[-1]) < 1e-12


def test_linear_falls_evenly_to_zero():
    found = sizes(optimizer(warmup=2, schedule="linear"), 11, 1.0)
    np.testing.assert_allclose(found, [0.05, 0.1, *(0.1 * (1 - np.arange(9) / 8))], rtol=1e-6, atol=1e-12)


def test_clipping_bounds_the_gradient_and_decay_pulls_to_zero():
    clipped = optimizer(grad_clip=0.5)
    state = clipped.update({"w": jnp.array([3.0, 4.0])}, clipped.init(PARAMS), PARAMS)[1]
    moments = optax.tree_utils.tree_get(state, "mu")["w"]
    np.testing.assert_allclose(moments, 0.1 * np.array([0.3, 0.4]), rtol=1e-6)
    decayed = optimizer(weight_decay=0.2)
    updates = decayed.update({"w": jnp.zeros(2)}, decayed.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(updates["w"], -0.1 * 0.2 * PARAMS["w"], rtol=1e-6)


def test_the_optimizer_is_adam_with_its_own_beta1_and_eps():
    transformation = loop.create_optimizer(0.1, 0.5, 1e-3, 0, 0.0, 0.0, "constant", 10)
    params, mean, square = {"w": jnp.zeros(1)}, 0.0, 0.0
    state = transformation.init(params)
    for n, gradient in enumerate((1.0, 3.0, -2.0), 1):
        mean, square = 0.5 * mean + 0.5 * gradient, 0.999 * square + 0.001 * gradient**2
        expected = -0.1 * mean / (1 - 0.5**n) / (np.sqrt(square / (1 - 0.999**n)) + 1e-3)
        updates, state = transformation.update({"w": jnp.full(1, gradient)}, state, params)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-9)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="config.optim.schedule='step' is unknown"):
        optimizer(schedule="step")
    with pytest.raises(ValueError, match="batch_size=4 is not a multiple of config.training.microbatch=3"):
        settings_of(1, microbatch=3)


def test_the_average_forgets_the_start_then_reaches_its_rate():
    found = [float(loop.ema_decay(jnp.int32(n), 0.999)) for n in (1, 8, 10**6)]
    np.testing.assert_allclose(found, [2 / 11, 0.5, 0.999], rtol=1e-6)


def one_update(**changes):
    settings, state = settings_of(1, **changes), create_state(PARAMS, OPTIMIZER)
    return loop.update_step(loss_fn, OPTIMIZER, settings, state, Batches().batch(0), jax.random.key(0))


def test_an_update_takes_the_batch_mean_and_averages_the_parameters():
    state, loss, norm = one_update()
    key = jax.random.fold_in(jax.random.key(0), 0)
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(4)])
    expected, gradient = jax.value_and_grad(lambda p: loss_fn(p, Batches().batch(0), keys).mean())(PARAMS)
    np.testing.assert_allclose((loss, norm), (expected, jnp.linalg.norm(gradient["w"])), rtol=1e-10)
    np.testing.assert_allclose(state.params["w"], PARAMS["w"] - 0.1 * jnp.sign(gradient["w"]), rtol=1e-6)
    np.testing.assert_allclose(state.ema_params["w"], 2 / 11 * PARAMS["w"] + 9 / 11 * state.params["w"], rtol=1e-6)
    np.testing.assert_array_equal(one_update(ema_rate=0.0)[0].ema_params["w"], state.params["w"])


def test_every_update_has_noise_of_its_own():
    state, key = create_state(PARAMS, OPTIMIZER)._replace(step=jnp.int32(5)), jax.random.fold_in(jax.random.key(0), 5)
    loss = loop.update_step(loss_fn, OPTIMIZER, settings_of(1), state, Batches().batch(0), jax.random.key(0))[1]
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(4)])
    np.testing.assert_allclose(loss, loss_fn(PARAMS, Batches().batch(0), keys).mean(), rtol=1e-10)


def test_microbatches_make_the_same_update_as_one_batch():
    for a, b in zip(jax.tree.leaves(one_update()), jax.tree.leaves(one_update(microbatch=2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_split_over_two_devices_the_update_is_that_of_one(tmp_path):
    assert jax.device_count() == 2
    found = train(tmp_path, settings_of(1))
    np.testing.assert_allclose(found.params["w"], one_update()[0].params["w"], rtol=1e-10)
    line = json.loads((tmp_path / loop.LOG_FILE).read_text())
    np.testing.assert_allclose(line["loss"], one_update()[1], rtol=1e-10)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", settings_of(6))
    train(tmp_path / "parts", settings_of(3))
    resumed = train(tmp_path / "parts", settings_of(6))
    assert resumed.step == 6
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / loop.LOG_FILE).open()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_last_update_is_saved_wherever_it_falls(tmp_path):
    state = train(tmp_path, settings_of(4))
    np.testing.assert_array_equal(load_state(tmp_path, state).params["w"], state.params["w"])


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_state(tmp_path, log_every):
    with pytest.raises(FloatingPointError, match="The loss is nan at update .*Lower --config.optim.lr"):
        train(tmp_path, settings_of(9, log_every=log_every), Batches(nan_at=4))
    kept = load_state(tmp_path, create_state(PARAMS, OPTIMIZER))
    assert kept.step == 3 and np.isfinite(kept.params["w"]).all()


def test_hooks_are_called_at_their_steps(tmp_path):
    sampled, logged = [], []
    train(
        tmp_path,
        settings_of(6, log_every=4, sample_every=2),
        on_sample=lambda state: sampled.append(int(state.step)),
        on_progress=lambda step, loss: logged.append(step),
    )
    assert sampled == [2, 4] and logged == [4, 6]


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is_finite(tmp_path):
    def with_a_root(params, batch, keys):
        return jnp.sqrt(jnp.square(params["w"][None] - batch["image"])).sum(1)  # its slope at 0 is not a number

    class Touching:
        def batch(self, step):
            return {"image": np.full((4, 2), 1.0 if step == 4 else 9.0)}

    state = create_state({"w": jnp.ones(2)}, optimizer(lr=0.0))
    with pytest.raises(FloatingPointError, match="The loss is .*, the gradient's norm nan; the state of the last"):
        loop.train(with_a_root, optimizer(lr=0.0), settings_of(9, log_every=100), state, Touching(), 0, tmp_path)
    kept = load_state(tmp_path, state)
    assert kept.step == 3 and np.isfinite(kept.params["w"]).all()
