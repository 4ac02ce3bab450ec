"""Targets, losses and weights as published; perfect students telescope; a student learns; what a NaN may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import GOLDENS

import sde_lib
from models.denoiser import Denoiser
from sampling import base, single_step, time_grids
from sampling.base import TimeGrid
from sampling.denoising import Recording
from sde_lib import VESDE, CosineVPSDE
from training import loop
from training import progressive_distillation as pd
from training.progressive_distillation import Distillation, FromImages, FromPaths, Stage
from training.state import create_state

CORE = np.load(GOLDENS / "distill" / "pd_core.npz")
VE = np.load(GOLDENS / "distill" / "pd_ve_teacher.npz")
COSINE = CosineVPSDE()


class Mixture:
    """E[x0 | y] of Gaussians at means [K, d] with widths [K], for y = x0 + s eps."""

    def __init__(self, weights, means, widths):
        self.parts = weights, means, widths

    @classmethod
    def recorded(cls, file, prefix):
        return cls(*(jnp.asarray(file[f"{prefix}{key}"]) for key in ("w", "mu", "s")))

    def __call__(self, y, s):
        weights, means, widths = self.parts
        flat, s = y.reshape(len(y), -1), jnp.broadcast_to(s, y.shape[:1])[:, None]
        variance = widths[None] ** 2 + s**2
        difference = flat[:, None] - means[None]
        log_p = jnp.log(weights)[None] - 0.5 * means.shape[1] * jnp.log(variance)
        share = jax.nn.softmax(log_p - 0.5 * (difference**2).sum(-1) / variance, axis=-1)
        towards = means[None] + (widths[None] ** 2 / variance)[..., None] * difference
        return (share[..., None] * towards).sum(1).reshape(y.shape)


def denoiser_of(denoise, sde, predicts="x0"):
    """A model of any process and prediction whose denoiser is `denoise`."""

    def network(params, x, t, **conditions):
        alpha, sigma = (value(t)[:, None, None, None] for value in (sde.alpha, sde.sigma))
        x0 = denoise(x / alpha, sde.noise_scale(t))
        eps = (x - alpha * x0) / sigma
        if predicts == "both":
            return jnp.concatenate([x0, eps], axis=-1)
        return sde_lib.predict(predicts, x0, eps, alpha, sigma)

    return Denoiser(jnp.zeros(()), network, sde, predicts, "t")


def cosine_grid(n):
    s = COSINE.noise_scale(np.linspace(1, 0, n + 1))
    s[-1] = 0.0  # the published sampler returns the estimate at its last step
    return s


def ddim(denoise, s, y):
    """DDIM as a plain loop, also for denoisers that look their noise scale up; the final image."""
    for here, there in zip(s[:-1], s[1:], strict=True):
        x0 = denoise(y, jnp.full(len(y), here, y.dtype))
        y = x0 + there / here * (y - x0)
    return y


# --- The target ---


@pytest.mark.parametrize("name", ["target_a", "target_n1"])
@pytest.mark.parametrize("predicts", ["x0", "eps", "v", "score", "both"])
def test_two_step_targets_are_the_published_ones_for_every_prediction(name, predicts):
    golden = {key.removeprefix(f"{name}/"): CORE[key] for key in CORE.files if key.startswith(name)}
    n, i = int(golden["N_student"]), golden["i"]
    stage = Stage(cosine_grid(2 * n), 2)
    paths = stage.paths[n - 1 - i]
    alpha = 1 / np.sqrt(1 + paths[:, 0] ** 2)
    y = jnp.asarray(golden["z_t"] / alpha[:, None, None, None])
    teacher = denoiser_of(Mixture.recorded(golden, "gmm_teacher_"), COSINE, predicts)
    x0, y_next = pd.target(Distillation(), teacher, y, jnp.asarray(paths), jnp.asarray(pd.implied_weights(paths)))
    # alpha is 5e-5 at t = 1, where eps and score say little about x0.
    tolerance = {"atol": 1e-11} if predicts in ("x0", "v", "both") else {"atol": 1e-7}
    np.testing.assert_allclose(x0, golden["x_target"], rtol=0, **tolerance)
    late = i > 0
    alpha_s = 1 / np.sqrt(1 + paths[:, 2] ** 2)[:, None, None, None]
    np.testing.assert_allclose((alpha_s * y_next)[late], golden["z_teacher_s"][late], atol=1e-7)
    sigma = (alpha * paths[:, 0])[:, None, None, None]
    v = (alpha[:, None, None, None] * golden["z_t"] - x0) / sigma
    np.testing.assert_allclose(v, golden["v_target"], atol=1e-6)
    eps = (golden["z_t"] - alpha[:, None, None, None] * x0) / sigma
    np.testing.assert_allclose(eps, golden["eps_target"], atol=1e-6)


@pytest.mark.parametrize("name", ["target_a", "target_n1"])
@pytest.mark.parametrize(
    "weighting, key", [("constant", "constant"), ("snr", "snr"), ("snr_trunc", "snr_trunc"), ("v", "v_mse")]
)
def test_losses_are_the_published_ones_per_example(name, weighting, key):
    s = jnp.exp(-jnp.asarray(CORE[f"{name}/logsnr_t"]) / 2)
    student = denoiser_of(lambda y, s: jnp.asarray(CORE[f"{name}/x_student"]), COSINE)
    settings = Distillation(weighting)
    target = jnp.asarray(CORE[f"{name}/x_target"])
    batch = {"y": 0 * target, "s": s, "target": target, "weight": pd.weight(settings, s)}
    np.testing.assert_allclose(pd.loss(student, batch), CORE[f"{name}/loss_{key}"], rtol=1e-9)


def test_images_in_0_1_have_the_loss_of_the_same_images_in_minus_1_1():
    s = jnp.array([0.01, 0.3, 4.0])
    for weighting in pd.WEIGHTINGS:
        wide, unit = Distillation(weighting), Distillation(weighting, centered=False)
        # An error d and a noise scale s in [0, 1] are 2 d and 2 s in [-1, 1].
        np.testing.assert_allclose(unit.unit**2 * pd.weight(unit, s), 4 * pd.weight(wide, 2 * s), rtol=1e-6)


def test_float32_targets_keep_their_digits_at_512_steps_where_the_ratio_form_loses_them():
    rng = np.random.default_rng(0)
    stage = Stage(cosine_grid(1024), 2)
    paths = stage.paths
    x1, gap = rng.uniform(-1, 1, (2, 512, 2, 2, 3))
    x2 = x1 + 0.05 * gap
    y = x1 + paths[:, 0][:, None, None, None] * rng.normal(size=x1.shape)

    def ratio_form(x1, x2, y, s, dtype):
        """z_s = alpha_s x2 + sigma_s eps2, then the x that takes z_t to z_s, as the original program has it."""
        x1, x2, y, s = (np.asarray(part, dtype) for part in (x1, x2, y, s[:, :, None, None, None]))
        st, sm, ss = s[:, 0], s[:, 1], s[:, 2]
        alpha_t, alpha_m, alpha_s = (1 / np.sqrt(1 + part**2) for part in (st, sm, ss))
        z_t = alpha_t * y
        z_m = alpha_m * x1 + alpha_m * sm * (z_t - alpha_t * x1) / (alpha_t * st)
        z_s = alpha_s * x2 + alpha_s * ss * (z_m - alpha_m * x2) / (alpha_m * sm)
        ratio = alpha_s * ss / (alpha_t * st)
        return (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)

    def teacher():
        answers = iter([jnp.asarray(x1, jnp.float32), jnp.asarray(x2, jnp.float32)])
        return lambda y, s: next(answers)

    exact = ratio_form(x1, x2, y, paths, np.float64)
    single = (jnp.asarray(part, jnp.float32) for part in (y, paths, pd.implied_weights(paths)))
    found = pd.target(Distillation(), teacher(), *single)[0]
    assert found.dtype == jnp.float32
    assert np.abs(found - exact).max() < 1e-6
    assert np.abs(ratio_form(x1, x2, y, paths, np.float32) - exact).max() > 1e-5


def test_the_coefficient_is_that_of_the_cosine_schedule():
    n = 64
    stage = Stage(cosine_grid(2 * n), 2)
    found = pd.implied_weights(stage.paths)[:, 1]
    slope, offset = COSINE._slope, COSINE._offset
    t, half = np.arange(n, 0, -1) / n, slope / (2 * n)
    phi_t, phi_m = slope * t + offset, slope * (t - 0.5 / n) + offset
    expected = np.sin(phi_t) / (2 * np.cos(half) * np.sin(phi_m))
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-9)
    assert found[-1] == 1.0 and abs(found[0] - 0.5) < 1e-3


UNOFFICIAL = np.load(GOLDENS / "distill" / "pd_unofficial_compat.npz")


def unofficial_network(which):
    """Its recorded network: a mixture's v at the level of the 1024-step chain that a label rounds to."""
    exact = Mixture.recorded(UNOFFICIAL, f"gmm_{which}_")
    fine = sde_lib.DiscreteVPSDE(schedule="cosine", num_scales=1024)
    table = jnp.asarray(fine.noise_scale(np.linspace(0, 1, 1024)))

    def network(z, labels):
        s = table[jnp.round(labels).astype(int)]
        alpha = (1 / jnp.sqrt(1 + s**2))[:, None, None, None]
        sigma = s[:, None, None, None] * alpha
        x0 = exact(z / alpha, s)
        return alpha * (z - alpha * x0) / sigma - sigma * x0

    return network


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_unofficial_loss_is_that_of_the_second_estimate_clipped(gamma):
    def chain(n):
        sde = sde_lib.DiscreteVPSDE(schedule="cosine", num_scales=n, beta_max=float(min(20, n)))
        return jnp.asarray(sde.noise_scale(np.linspace(0, 1, n)))

    def level(s):
        alpha = (1 / jnp.sqrt(1 + s**2))[:, None, None, None]
        return alpha, s[:, None, None, None] * alpha

    recorded = {key: jnp.asarray(UNOFFICIAL[f"distill/{key}"]) for key in ("t", "x0", "eps")}
    n, scale = int(UNOFFICIAL["distill/n_teacher"]), int(UNOFFICIAL["distill/time_scale_teacher"])
    t, s_teacher, told = recorded["t"], chain(n), []

    def teacher(y, s):
        index = jnp.argmin(jnp.abs(s_teacher[None] - s[:, None]), axis=1)
        told.append(np.asarray(index * scale))
        alpha, sigma = level(s)
        return alpha * (alpha * y) - sigma * unofficial_network("teacher")(alpha * y, index * scale)

    s = jnp.stack([s_teacher[t + 1], s_teacher[t], jnp.zeros(len(t))], axis=1)
    y = recorded["x0"] + s[:, :1, None, None] * recorded["eps"]
    settings = Distillation(target="x2", clip=True)
    x2, _ = pd.target(settings, teacher, y, s, jnp.asarray(pd.implied_weights(s)))
    np.testing.assert_array_equal(told, UNOFFICIAL["distill/teacher_labels"])
    z = level(s[:, 0])[0] * y
    s_student = chain(n // 2)[t // 2]
    alpha, sigma = level(s_student)  # of its own chain, which differs at the last level
    found = unofficial_network("student")(z, UNOFFICIAL["distill/student_labels"][0])
    weight = (1 + alpha / sigma) ** gamma
    losses = jnp.mean((weight * (found - (alpha * z - x2) / sigma)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses, UNOFFICIAL[f"distill/loss_per_t_gamma{gamma:g}"], rtol=1e-5)
    np.testing.assert_allclose(losses.mean(), UNOFFICIAL[f"distill/loss_gamma{gamma:g}"], rtol=1e-5)


def test_a_variance_exploding_teacher_has_the_published_targets():
    stage = Stage(VE["sigma_grid"], 2)
    np.testing.assert_allclose(stage.paths, np.stack([VE["sigma_t"], VE["sigma_mid"], VE["sigma_s"]], 1))
    sde = VESDE(sigma_min=0.01, sigma_max=50.0)
    teacher = denoiser_of(Mixture.recorded(VE, "gmm_"), sde, "score")
    found, y_next = pd.target(
        Distillation(),
        teacher,
        jnp.asarray(VE["z_t"]),
        jnp.asarray(stage.paths),
        jnp.asarray(pd.implied_weights(stage.paths)),
    )
    np.testing.assert_allclose(found, VE["x_target"], atol=1e-10)
    np.testing.assert_allclose(y_next, VE["z_s"], atol=1e-10)
    np.testing.assert_allclose(found[-1], VE["x_teacher_mid"][-1], atol=1e-10)


def test_any_number_of_teacher_steps_is_one_ddim_step_with_the_target():
    s = np.geomspace(20.0, 0.1, 7)
    teacher = Mixture(jnp.array([0.3, 0.7]), jnp.array([[0.5] * 12, [-0.5] * 12]), jnp.array([0.2, 0.4]))
    y = 20.0 * jax.random.normal(jax.random.key(0), (3, 2, 2, 3))
    path = jnp.asarray(np.repeat(s[None], 3, 0))
    x0, y_next = pd.target(Distillation(), teacher, y, path, jnp.asarray(pd.implied_weights(s))[None].repeat(3, 0))
    np.testing.assert_allclose(y_next, ddim(teacher, s, y), atol=1e-12)
    np.testing.assert_allclose(x0 + s[-1] / s[0] * (y - x0), y_next, atol=1e-12)


def test_heun_targets_lead_where_heun_steps_do():
    s = np.append(np.geomspace(20.0, 0.1, 4), 0.0)
    teacher = Mixture(jnp.array([0.3, 0.7]), jnp.array([[0.5] * 12, [-0.5] * 12]), jnp.array([0.2, 0.4]))
    y = 20.0 * jax.random.normal(jax.random.key(0), (3, 2, 2, 3))
    stage = Stage(s, 2)
    heun = base.integrate(
        Recording(single_step.heun_step),
        jax.tree_util.Partial(teacher),
        single_step.init(y),
        single_step.rows(TimeGrid(s, s)),
    )[1][0]
    state = y
    for path, expected in zip(stage.paths, np.asarray(heun)[1::2], strict=True):
        path = jnp.asarray(np.repeat(path[None], 3, 0))
        weights = jnp.asarray(pd.implied_weights(path))
        state = pd.target(Distillation(solver="heun"), teacher, state, path, weights)[1]
        np.testing.assert_allclose(state, expected, atol=1e-11)


def perfect(teacher, stage, settings):
    """The student that the targets of a stage are the values of, as a denoiser on that stage's grid."""

    def student(y, s):
        k = int(np.argmin(np.abs(stage.student_grid[:-1] - float(jnp.ravel(jnp.asarray(s))[0]))))
        path = jnp.asarray(np.repeat(stage.paths[k][None], len(y), 0))
        return pd.target(settings, teacher, y, path, jnp.asarray(pd.implied_weights(path)))[0]

    return student


def test_perfect_students_reproduce_the_teacher_at_every_halving():
    teacher = jax.jit(Mixture.recorded(CORE, "telescope/gmm_").__call__)
    y = jnp.asarray(CORE["telescope/z1"]) / COSINE.alpha(np.float64(1.0))
    np.testing.assert_allclose(ddim(teacher, cosine_grid(32), y), CORE["telescope/teacher_N32_sample"], atol=1e-10)
    right, wrong = teacher, teacher
    for stage in pd.stages(cosine_grid(32), 1):
        right, wrong = perfect(right, stage, Distillation()), perfect(wrong, stage, Distillation(target="x2"))
        n = stage.num_steps
        found = ddim(right, stage.student_grid, y)
        np.testing.assert_allclose(found, CORE["telescope/teacher_N32_sample"], rtol=0, atol=1e-10)
        if n >= 8:  # the recursion calls the teacher 32 times a sample whatever n is; three halvings say it all
            found = ddim(wrong, stage.student_grid, y)
            np.testing.assert_allclose(found, CORE[f"telescope/x2target_perfect_student_N{n}"], atol=1e-10)


def test_stages_halve_and_keep_the_points_of_the_first_grid():
    grid = cosine_grid(64)
    found = pd.stages(grid, 1)
    assert [stage.num_steps for stage in found] == [32, 16, 8, 4, 2, 1]
    for before, after in zip(found[:-1], found[1:], strict=True):
        np.testing.assert_array_equal(before.student_grid, after.grid)
    assert [stage.num_steps for stage in pd.stages(grid, 4, 4)] == [16, 4]


@pytest.mark.parametrize("start, end, factor", [(63, 1, 2), (64, 3, 2), (64, 8, 4), (8, 8, 2), (4, 8, 2), (8, 1, 1)])
def test_steps_that_do_not_divide_are_refused(start, end, factor):
    with pytest.raises(ValueError, match=f"start_steps={start} cannot be divided by config.distill.factor={factor}"):
        pd.stages(cosine_grid(start), end, factor)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="config.distill.weighting='edm' is unknown"):
        Distillation("edm")
    with pytest.raises(ValueError, match="config.distill.target='x3' is unknown"):
        Distillation(target="x3")
    with pytest.raises(ValueError, match="config.distill.solver='rk45' is unknown"):
        Distillation(solver="rk45")


# --- Batches ---

PAIR = Mixture(jnp.array([0.4, 0.3, 0.3]), jnp.array([[0.7, 0.5], [-0.6, 0.4], [0.1, -0.7]]), jnp.array([0.25] * 3))
SHAPE = (1, 1, 2)
SDE = VESDE(sigma_min=0.02, sigma_max=20.0)


def correction(params, x, t, classes=None):
    """The exact denoiser of PAIR and a small network's correction to it, none at the start."""
    s = SDE.noise_scale(t)[:, None]
    flat = x.reshape(len(x), 2)
    scale = jnp.sqrt(s**2 + 0.25)
    inputs = jnp.concatenate([flat / scale, jnp.log(s), jnp.sin(2 * jnp.log(s)), jnp.cos(2 * jnp.log(s))], axis=1)
    for layer in ("a", "b"):
        inputs = jnp.tanh(inputs @ params[layer]["w"] + params[layer]["b"][None])
    change = s / scale * (inputs @ params["c"]["w"] + params["c"]["b"][None])
    return PAIR(x, SDE.noise_scale(t)) + change.reshape(x.shape)


def first_params(width=64):
    rng = np.random.default_rng(0)
    sizes = {"a": (5, width), "b": (width, width), "c": (width, 2)}
    layers = {
        key: {"w": rng.normal(size=size) / np.sqrt(size[0]), "b": np.zeros(size[1])} for key, size in sizes.items()
    }
    layers["c"]["w"] *= 0
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), layers)


def model_of(params):
    return Denoiser(params, correction, SDE, "x0", "t")


CALL = jax.jit(lambda model, y, s: model(y, s))
TEACHER = model_of(first_params())
SETTINGS = Distillation()
GRID = time_grids.make("edm", 64, 20.0, 0.02, SDE).s


class Images:
    """Samples of PAIR's components as uint8 images, one pixel and two channels."""

    def batch(self, step):
        rng = np.random.default_rng(step)
        points = np.asarray(PAIR.parts[1])[rng.integers(0, 3, 8)] + 0.25 * rng.normal(size=(8, 2))
        pixels = np.uint8(np.clip(127.5 * (points + 1), 0, 255)).reshape(8, *SHAPE)
        return {"image": pixels, "label": rng.integers(0, 5, 8).astype(np.int32)}


def from_paths(stage, teacher=TEACHER, batch_size=16, settings=SETTINGS, **changes):
    return FromPaths(settings, stage, teacher, batch_size, SHAPE, 20.0, 0, **changes)


def test_targets_along_paths_are_those_of_their_states_and_end_in_the_teachers_images():
    stage = Stage(GRID[::16], 2)
    batch = from_paths(stage, batch_size=4).batch(0)
    keys = pd.image_keys(0, 2, 0, 2)
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), SHAPE, jnp.float32))(keys)
    np.testing.assert_allclose(batch["y"][:2], 20.0 * noise, rtol=1e-6)
    np.testing.assert_allclose(batch["s"], np.repeat(stage.student_grid[:-1], 2), rtol=1e-6)
    np.testing.assert_allclose(batch["target"][2:], ddim(TEACHER, GRID[::16], 20.0 * noise), atol=1e-5)
    weights = np.maximum(1 / np.asarray(batch["s"]) ** 2, 1)
    np.testing.assert_allclose(batch["weight"], weights, rtol=1e-5)


def test_targets_from_images_stand_on_the_students_grid_and_change_with_the_step():
    stage = Stage(GRID[::4], 2)
    source = FromImages(SETTINGS, stage, TEACHER, Images(), 0)
    batch, other = source.batch(0), source.batch(1)
    assert set(np.round(np.asarray(batch["s"]), 5)) <= set(np.round(stage.student_grid[:-1], 5).astype(np.float32))
    assert not np.array_equal(batch["s"], other["s"])
    np.testing.assert_array_equal(source.batch(0)["target"], batch["target"])
    which = [int(np.argmin(np.abs(stage.paths[:, 0] - s))) for s in np.asarray(batch["s"])]
    paths = stage.paths[which].astype(np.float32)
    expected = pd.target(SETTINGS, TEACHER, batch["y"], jnp.asarray(paths), jnp.asarray(pd.implied_weights(paths)))[0]
    np.testing.assert_allclose(batch["target"], expected, atol=2e-5)
    x0 = (2.0 * Images().batch(0)["image"] / 255 - 1).astype(np.float32)
    noise = (np.asarray(batch["y"]) - x0) / np.asarray(batch["s"])[:, None, None, None]
    assert 0.5 < noise.std() < 1.6


def test_a_batch_has_keys_of_its_own_in_each_stage_and_update():
    found = pd.image_keys(seed=3, stage=8, step=5, count=4)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 8), 5)
    expected = jnp.stack([jax.random.fold_in(key, i) for i in range(4)])
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(expected))


def test_targets_from_images_in_0_1_are_weighed_in_units_of_minus_1_1():
    constant = Denoiser(None, lambda params, x, t: jnp.full_like(x, 0.6), SDE, "x0", "t")
    source = FromImages(Distillation(centered=False), Stage(GRID[::16], 2), constant, Images(), 0)
    batch, s = source.batch(3), np.asarray(source.batch(3)["s"])
    np.testing.assert_allclose(batch["target"], 0.6, rtol=1e-5)
    np.testing.assert_allclose(batch["weight"], 4 * np.maximum(1 / (2 * s) ** 2, 1), rtol=1e-5)
    keys = pd.image_keys(0, 2, 3, 8)
    z = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), SHAPE, jnp.float32))(keys)
    image = Images().batch(3)["image"].astype(np.float32) / 255
    np.testing.assert_allclose(batch["y"], image + s[:, None, None, None] * z, rtol=1e-5, atol=1e-5)
    seen = np.concatenate([source.batch(step)["s"] for step in range(4)])
    np.testing.assert_allclose(np.unique(seen), np.sort(source.stage.student_grid[:-1]), rtol=1e-5)  # the last step too


@pytest.mark.slow
def test_every_class_and_every_guidance_scale_of_the_range_is_drawn():
    drawn = pd.Conditions(num_classes=3, guidance=(1.0, 4.0)).draw(pd.image_keys(0, 1, 0, 300))
    assert np.bincount(drawn["classes"], minlength=4).min() == 0 < np.bincount(drawn["classes"])[:3].min()
    assert 1 <= drawn["guidance"].min() < 1.1 and 3.9 < drawn["guidance"].max() <= 4
    assert abs(np.corrcoef(drawn["classes"], drawn["guidance"])[0, 1]) < 0.2


def test_a_batch_that_paths_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size=10 is not a multiple of the 4 steps"):
        from_paths(Stage(GRID[::8], 2), batch_size=10)


def test_classes_and_guidance_weights_reach_teacher_and_student():
    def network(params, x, t, classes, guidance):
        return 0 * x + classes[:, None, None, None] + 10 * guidance[:, None, None, None]

    told = Denoiser(None, network, SDE, "x0", "t")
    conditions = pd.Conditions(num_classes=5, guidance=(1.0, 4.0))
    source = from_paths(Stage(GRID[::16], 2), told, conditions=conditions)
    batch = source.batch(0)
    np.testing.assert_allclose(batch["target"][:, 0, 0, 0], batch["classes"] + 10 * batch["guidance"], rtol=1e-5)
    assert len(np.unique(batch["classes"])) > 1 and 1 <= batch["guidance"].min() < batch["guidance"].max() <= 4
    np.testing.assert_allclose(pd.loss(told, batch), 0, atol=1e-3)
    # Along with images the class is the image's own, not drawn.
    batch = FromImages(SETTINGS, source.stage, told, Images(), 0, conditions).batch(0)
    np.testing.assert_array_equal(batch["classes"], Images().batch(0)["label"])
    np.testing.assert_allclose(batch["target"][:, 0, 0, 0], batch["classes"] + 10 * batch["guidance"], rtol=1e-5)
    np.testing.assert_allclose(pd.loss(told, batch), 0, atol=1e-3)


# --- What must not spoil a run ---


def broken(params, x, t):
    """NaN for every image but the first of a batch."""
    return jnp.where((jnp.arange(len(x)) == 0)[:, None, None, None], PAIR(x, SDE.noise_scale(t)), jnp.nan)


def test_an_image_the_teacher_fails_on_is_left_out_and_counted():
    source = from_paths(Stage(GRID[::16], 2), Denoiser(None, broken, SDE, "x0", "t"), batch_size=6)
    batch = source.batch(0)
    gradient = jax.grad(lambda params: pd.loss(model_of(params), batch).sum())(TEACHER.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((batch, gradient)))
    assert source.skipped.total() == 4 and np.count_nonzero(batch["weight"]) == 2
    source.batch(1)
    assert source.skipped.total() == 8


OPTIMIZER = loop.create_optimizer(3e-3, 0.9, 1e-8, 0, 1.0, 0.0, "cosine", 250)


def loss_fn(params, batch, keys):
    return pd.loss(model_of(params), batch)


def train(stage, teacher, folder, updates, batch_size=256):
    settings = loop.LoopSettings(updates, batch_size, ema_rate=0.0, log_every=50, checkpoint_every=7)
    source = from_paths(stage, teacher, batch_size)
    state = loop.train(loss_fn, OPTIMIZER, settings, create_state(teacher.params, OPTIMIZER), source, 0, folder)
    return state


def test_a_run_killed_in_the_middle_of_a_stage_ends_in_the_same_bits(tmp_path):
    stage = Stage(GRID[::8], 2)
    whole = train(stage, TEACHER, tmp_path / "whole", 20, 64)
    train(stage, TEACHER, tmp_path / "parts", 14, 64)
    parts = train(stage, TEACHER, tmp_path / "parts", 20, 64)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_loss_does_not_depend_on_the_number_of_devices():
    assert jax.device_count() == 2
    source = from_paths(Stage(GRID[::8], 2), batch_size=16)
    two = source.batch(3)
    assert len(two["target"].sharding.device_set) == 2
    tables = source.stage.paths, pd.implied_weights(source.stage.paths)
    keys = pd.image_keys(0, source.stage.num_steps, 3, 4)
    one, _ = pd._from_paths(SETTINGS, pd.Conditions(), SHAPE, TEACHER, 20.0, *tables, keys)
    for key, value in one.items():
        np.testing.assert_allclose(value, two[key], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pd.loss(TEACHER, one), pd.loss(TEACHER, two), rtol=1e-4, atol=1e-7)


def test_from_64_steps_to_4_a_student_is_three_times_nearer_to_its_teacher_than_ddim(tmp_path):
    teacher, found = TEACHER, {}
    for stage in pd.stages(GRID, 4, 4):
        state = train(stage, teacher, tmp_path / str(stage.num_steps), 250)
        teacher = model_of(jax.device_get(state.params))
    noise = 20.0 * jax.random.normal(jax.random.key(9), (512, *SHAPE), jnp.float32)
    reference = ddim(jax.tree_util.Partial(CALL, TEACHER), GRID, noise)
    for name, model in (("student", teacher), ("ddim", TEACHER)):
        drawn = ddim(jax.tree_util.Partial(CALL, model), GRID[::16], noise)
        found[name] = float(jnp.sqrt(jnp.mean((drawn - reference) ** 2)))
    assert found["student"] < found["ddim"] / 3, found
