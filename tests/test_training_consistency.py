"""Consistency: the gap's curriculum, paths whose ends are known, and a student that needs one call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.denoiser import Denoiser
from sampling import time_grids
from sde_lib import VESDE
from training import consistency, loop
from training.consistency import ConsistencyLoss, FromImages, FromPaths
from training.state import create_state

SDE = VESDE(sigma_min=0.02, sigma_max=20.0)
SHAPE, MEAN, STD = (1, 1, 2), 0.3, 0.5
SETTINGS = ConsistencyLoss(s_min=0.02, s_max=20.0)
MEANS = jnp.array([[0.7, 0.5], [-0.6, 0.4], [0.1, -0.7]])


def gaussian(y, s):
    s = s[:, None, None, None]
    return MEAN + (y - MEAN) * STD**2 / (STD**2 + s**2)


def end(y, s):
    """Where the path of N(MEAN, STD^2) through y at s ends: its exact consistency function."""
    return MEAN + (y - MEAN) * STD / jnp.sqrt(STD**2 + s[:, None, None, None] ** 2)


def model_of(denoise):
    return Denoiser(jnp.zeros(()), lambda params, x, t, **given: denoise(x, SDE.noise_scale(t)), SDE, "x0", "t")


def mixture(y, s):
    flat, variance = y.reshape(len(y), 1, 2), (0.25**2 + s**2)[:, None]
    difference = flat - MEANS[None]
    share = jax.nn.softmax(-0.5 * (difference**2).sum(-1) / variance, axis=-1)
    towards = MEANS[None] + (0.25**2 / variance)[..., None] * difference
    return (share[..., None] * towards).sum(1).reshape(y.shape)


class Images:
    def batch(self, step):
        rng = np.random.default_rng(step)
        image = rng.integers(0, 256, (64, *SHAPE), dtype=np.uint8)
        return {"image": image, "label": rng.integers(0, 3, 64).astype(np.int32)}


# --- The curriculum ---


def test_the_gap_narrows_with_every_doubling_and_starts_at_the_image_where_noise_is_small():
    settings = ConsistencyLoss(doubling_steps=100, s_min=0.02)
    assert [settings.gap(step) for step in (0, 99, 100, 250)] == [0.5, 0.5, 0.25, 0.125]
    s = jnp.array([0.05, 0.5, 3.0, 40.0])
    found = consistency.nearer(settings, s, 0.125)
    expected = s * (1 - 0.125 * (1 + 8 / (1 + jnp.exp(s))))
    np.testing.assert_allclose(found, jnp.where(expected > 0.02, expected, 0), rtol=1e-6)
    np.testing.assert_array_equal(consistency.nearer(settings, s, 0.5)[:2], 0)  # 1 + 8/2 halves reach beyond 0
    assert (found[2:] > 0).all()
    unit = ConsistencyLoss(s_min=0.02, centered=False)
    np.testing.assert_allclose(2 * consistency.nearer(unit, s / 2, 0.125), found, rtol=1e-6)
    assert ConsistencyLoss(doubling_steps=0).gap(10**6) == 1


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="config.consistency.weighting='snr' is unknown"):
        ConsistencyLoss(weighting="snr")
    with pytest.raises(ValueError, match="config.consistency needs shrink > 1.*got 1.0"):
        ConsistencyLoss(shrink=1.0)


# --- Pairs ---


def test_pairs_from_images_share_their_noise():
    batch = FromImages(SETTINGS, Images(), 0).batch(0)
    s, r = (np.asarray(batch[key])[:, None, None, None] for key in ("s", "r"))
    x0 = 2 * Images().batch(0)["image"].astype(np.float32) / 255 - 1
    noise = (np.asarray(batch["y"]) - x0) / s
    assert (r < s).all() and abs(noise.std() - 1) < 0.15
    np.testing.assert_allclose(batch["y_r"], x0 + r * noise, atol=1e-4)
    log_s = np.log(np.asarray(batch["s"]))
    assert abs(np.mean(log_s) + 1.1) < 0.8 and 1.0 < np.std(log_s) < 2.6


@pytest.mark.parametrize("centered", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_follows_from_seed_step_curriculum_and_data_range(centered):
    unit = 1 if centered else 2  # noise scales are drawn in units of [-1, 1]
    settings = ConsistencyLoss(
        doubling_steps=100, s_min=0.3 / unit, s_max=20.0 / unit, mean=-0.5, std=1.5, centered=centered
    )
    batch = FromImages(settings, Images(), 7).batch(250)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0), 250)
    keys = [jax.random.fold_in(key, i) for i in range(64)]
    drawn = jnp.array([jax.random.normal(jax.random.fold_in(key, 0), (), jnp.float32) for key in keys])
    s = np.clip(np.exp(-0.5 + 1.5 * np.asarray(drawn)), 1.1 * 0.3, 20.0) / unit
    assert (s * unit < 0.331).any()
    np.testing.assert_allclose(batch["s"], s, rtol=1e-6)
    np.testing.assert_allclose(batch["r"], consistency.nearer(settings, jnp.asarray(s), 0.125), rtol=1e-5)
    image = Images().batch(250)["image"][5].astype(np.float32) / 255
    z = jax.random.normal(jax.random.fold_in(keys[5], 1), SHAPE, jnp.float32)
    np.testing.assert_allclose(batch["y"][5], (2 * image - 1 if centered else image) + s[5] * z, rtol=1e-5)


@pytest.mark.slow
def test_every_point_of_a_path_is_told_the_class_of_its_path():
    told = Denoiser(None, lambda params, x, t, classes: 0 * x + classes[:, None, None, None], SDE, "x0", "t")
    source = FromPaths(TO_THE_END, np.array([20.0, 1.0, 0.0]), told, 2 * 40, SHAPE, 20.0, 0, num_classes=3)
    batch = source.batch(0)
    # The network draws its class, so that every path ends there.
    np.testing.assert_allclose(batch["y_r"][:, 0, 0, 0], batch["classes"], atol=1e-5)
    assert set(np.asarray(batch["classes"]).tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(batch["classes"][:40], batch["classes"][40:])


def test_with_a_teacher_the_second_point_lies_on_its_path():
    settings = ConsistencyLoss(s_min=0.02, s_max=20.0, shrink=64.0, doubling_steps=10)
    batch = FromImages(settings, Images(), 0, model_of(gaussian), classes=True).batch(0)
    s, r, y, y_r = (np.asarray(batch[key]) for key in ("s", "r", "y", "y_r"))
    inside = r > 0
    assert inside.sum() > 10
    spread = np.sqrt((STD**2 + r**2) / (STD**2 + s**2))[:, None, None, None]
    exact = MEAN + (y - MEAN) * spread
    np.testing.assert_allclose(y_r[inside], exact[inside], atol=2e-3)
    np.testing.assert_array_equal(batch["classes"], Images().batch(0)["label"])


TO_THE_END = ConsistencyLoss(doubling_steps=0, s_min=0.02)


def paths(denoise=gaussian, n=8, count=4, settings=TO_THE_END, **changes):
    grid = time_grids.make("edm", n, 20.0, 0.02, SDE).s
    return FromPaths(settings, grid, model_of(denoise), n * count, SHAPE, 20.0, 0, **changes)


def test_pairs_on_paths_of_the_teacher_end_in_its_image_or_stand_nearer_to_it():
    batch = paths(n=32).batch(0)
    np.testing.assert_array_equal(batch["r"], 0)
    np.testing.assert_allclose(batch["y_r"], end(batch["y"], batch["s"]), atol=0.02)
    np.testing.assert_array_equal(np.asarray(batch["y_r"])[:4], np.asarray(batch["y_r"])[-4:])
    near = paths(settings=ConsistencyLoss(doubling_steps=10, s_min=0.02))
    np.testing.assert_array_equal(near.later(0), [4, 5, 5, 6, 6, 7, 7, 8])
    np.testing.assert_array_equal(near.later(30), np.arange(1, 9))
    np.testing.assert_allclose(near.batch(30)["r"], np.repeat(near.grid[1:], 4).astype(np.float32))
    with pytest.raises(ValueError, match="batch_size=12 is not a multiple of the 8 steps"):
        FromPaths(SETTINGS, near.grid, model_of(gaussian), 12, SHAPE, 20.0, 0)


# --- The loss ---


def test_the_loss_of_the_exact_consistency_function_vanishes_and_its_target_has_no_gradient():
    settings = ConsistencyLoss(s_min=1e-6, doubling_steps=0)
    y = 3.0 * jax.random.normal(jax.random.key(0), (4, *SHAPE))
    s, r = jnp.array([3.0, 2.0, 1.0, 0.5]), jnp.array([1.0, 0.5, 0.0, 0.1])
    y_r = MEAN + (y - MEAN) * jnp.sqrt((STD**2 + r**2) / (STD**2 + s**2))[:, None, None, None]
    batch = {"y": y, "s": s, "y_r": y_r, "r": r, "weight": jnp.ones(4)}
    np.testing.assert_allclose(consistency.loss(settings, model_of(end), batch), 0, atol=1e-4)

    def scaled(a):
        return consistency.loss(settings, model_of(lambda y, s: a * end(y, s)), batch).sum()

    # The point at r = 0 is its own target whatever the network says.
    target = jnp.where((r > 0)[:, None, None, None], 2.0 * end(y_r, jnp.maximum(r, 1e-6)), y_r)

    def expected(a):
        squared = jnp.sum((a * end(y, s) - target) ** 2, axis=(1, 2, 3))
        return jnp.sum((jnp.sqrt(squared + 0.03**2) - 0.03) / (s - r))

    np.testing.assert_allclose(scaled(2.0), expected(2.0), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(scaled)(2.0), jax.grad(expected)(2.0), rtol=1e-5)


def constant(value):
    return Denoiser(None, lambda params, x, t: jnp.full_like(x, value), SDE, "x0", "t")


def test_distance_and_gap_are_in_units_of_minus_1_to_1():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, *SHAPE))
    wide, unit = ConsistencyLoss(), ConsistencyLoss(s_min=0.005, centered=False)
    s, r = jnp.array([3.0, 2.0, 0.5]), jnp.array([1.0, 0.0, 0.1])
    of_wide = {"y": a, "y_r": b, "s": s, "r": r, "weight": jnp.ones(3)}
    of_unit = {"y": (a + 1) / 2, "y_r": (b + 1) / 2, "s": s / 2, "r": r / 2, "weight": jnp.ones(3)}
    losses = consistency.loss(wide, constant(0.2), of_wide), consistency.loss(unit, constant(0.6), of_unit)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(consistency.distance(unit, a / 2, b / 2), consistency.distance(wide, a, b), rtol=1e-6)
    norm = jnp.sqrt(((a - b) ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(consistency.distance(ConsistencyLoss(huber=0.0), a, b), norm, rtol=1e-5)


def test_a_path_the_teacher_fails_on_is_left_out_and_counted():
    def broken(y, s):
        return jnp.where((jnp.arange(len(y)) == 1)[:, None, None, None], jnp.nan, gaussian(y, s))

    source = paths(broken)
    batch = source.batch(0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(batch))
    assert source.skipped.total() == 8 and np.count_nonzero(batch["weight"]) == 24


# --- Learning ---


def network(params, x, t, **given):
    s = SDE.noise_scale(t)[:, None]
    scale = jnp.sqrt(s**2 + 0.25)
    inputs = jnp.concatenate([x.reshape(len(x), 2) / scale, jnp.log(s), jnp.cos(jnp.log(s))], axis=1)
    for layer in ("a", "b"):
        inputs = jnp.tanh(inputs @ params[layer]["w"] + params[layer]["b"][None])
    change = s / scale * (inputs @ params["c"]["w"] + params["c"]["b"][None])
    return mixture(x, s[:, 0]) + change.reshape(x.shape)


def first_params():
    rng, sizes = np.random.default_rng(0), {"a": (4, 64), "b": (64, 64), "c": (64, 2)}
    drawn = {k: {"w": rng.normal(size=size) / np.sqrt(size[0]), "b": np.zeros(size[1])} for k, size in sizes.items()}
    drawn["c"]["w"] *= 0
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)


OPTIMIZER = loop.create_optimizer(3e-3, 0.9, 1e-8, 0, 1.0, 0.0, "cosine", 300)
LEARNING = ConsistencyLoss(doubling_steps=0, weighting="ones", s_min=0.02)


def student_of(params):
    return Denoiser(params, network, SDE, "x0", "t")


def learn(params, batch, keys):
    return consistency.loss(LEARNING, student_of(params), batch)


def test_one_call_of_a_student_is_three_times_nearer_to_its_teacher_than_a_ddim_step(tmp_path):
    source = paths(mixture, 8, 32, LEARNING)
    settings = loop.LoopSettings(300, 256, ema_rate=0.0, log_every=100, checkpoint_every=500)
    start = create_state(first_params(), OPTIMIZER)
    state = loop.train(learn, OPTIMIZER, settings, start, source, 0, tmp_path)
    fresh = source.batch(10**6)  # paths never trained on
    first = np.asarray(fresh["s"]) == 20.0
    y, s, target = (jnp.asarray(fresh[key][first]) for key in ("y", "s", "y_r"))
    before, after = (
        float(jnp.sqrt(jnp.mean((student_of(params)(y, s) - target) ** 2)))
        for params in (first_params(), jax.device_get(state.params))
    )
    assert after < before / 3, (before, after)
