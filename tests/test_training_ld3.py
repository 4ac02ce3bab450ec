import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ld3_cases import SigmaTime, golden, mixture, pairs, space, teacher
from sampling_oracles import Gaussian

from sampling import base, general_solver, multistep, time_grids
from sampling.base import TimeGrid
from sde_lib import VPSDE
from training import ld3

PARAMETRISATION = golden("parametrisation.npz")
GRIDS = sorted({key.rsplit("/", 1)[0] for key in PARAMETRISATION if not key.startswith("grad/")})
GRADIENTS = sorted({"/".join(key.split("/")[1:5]) for key in PARAMETRISATION if key.startswith("grad/")})
GAUSSIAN = Gaussian(0.3, 0.5)


@pytest.mark.parametrize("case", GRIDS)
def test_parameters_mean_the_published_times(case):
    schedule, mode, _, _ = case.split("/")
    stored = {key: PARAMETRISATION[f"{case}/{key}"] for key in ("params1", "params2", "t1", "t2")}
    bounds = {"released": stored["t2"]}
    if mode == "lambda":
        bounds["spacing"] = PARAMETRISATION[f"{case}/t2_fixed_bound"]
    for bound, told in bounds.items():
        where = space(schedule, mode, bound=bound)
        params = {"logits": jnp.asarray(stored["params1"]), "shifts": jnp.asarray(stored["params2"])}
        found = ld3.grid(where, params)
        np.testing.assert_allclose(where.sde.time(found.s), stored["t1"], rtol=1e-10)
        np.testing.assert_allclose(where.sde.time(found.s_model), told, rtol=1e-10)


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_are_the_published_ones_released_and_full(case):
    schedule, mode, solver, _ = case.split("/")
    where = space(schedule, mode, bound="released")
    name, _, order = solver.partition("_o")
    name, _, variant = name.partition("_")
    stored = {key: PARAMETRISATION[f"grad/{case}/{key}"] for key in ("params1", "params2", "loss")}
    params = {"logits": jnp.asarray(stored["params1"]), "shifts": jnp.asarray(stored["params2"])}
    noise, law = jnp.asarray(golden("model.npz")["latent"]), mixture()
    end = 0.002 if schedule == "ve_edm" else 1e-3
    prior = 80.0 if schedule == "ve_edm" else float(1 / where.sde.alpha(np.float64(1.0)))
    scale = float(where.sde.alpha(np.float64(end)))
    target = scale * teacher(law, noise, prior, where, time_grids.logsnr(20, where.s_max, where.s_min))
    objective = ld3.Objective(lambda y, target: ld3.l2(scale * y, target), prior)
    for kind in ("released", "full"):
        if f"grad/{case}/{kind}/dparams1" not in PARAMETRISATION:
            continue
        student = ld3.Student(name, int(order), variant, published_gradient=kind == "released")
        loss = functools.partial(ld3.loss, objective, where, student, law)
        value, found = jax.jit(jax.value_and_grad(lambda p, loss=loss: loss(p, noise, target).mean()))(params)
        np.testing.assert_allclose(value, stored["loss"], atol=1e-10)
        np.testing.assert_allclose(found["logits"], PARAMETRISATION[f"grad/{case}/{kind}/dparams1"], atol=1e-9)
        np.testing.assert_allclose(found["shifts"], PARAMETRISATION[f"grad/{case}/{kind}/dparams2"], atol=1e-9)


STUDENTS = [
    ("ddim", 0, "", "ld3"),
    ("euler", 0, "", "ld3"),
    ("ipndm", 3, "", "gs"),
    ("ipndm_v", 3, "", "ld3"),
    ("deis", 3, "", "ld3"),
    ("ghvb", 2.5, "", "ld3"),
    ("dpmpp", 2, "", "s4s"),
    ("dpmpp", 3, "", "gs"),
    ("unipc", 3, "bh1", "ld3"),
    ("unipc", 2, "bh2", "s4s"),
    ("heun", 0, "", "ld3"),
    ("dpmpp_2s", 0, "", "ld3"),
]


@pytest.mark.parametrize("solver, order, variant, method", STUDENTS)
@pytest.mark.parametrize("to_zero", [False, True])
def test_gradients_agree_with_finite_differences(solver, order, variant, method, to_zero):
    where = ld3.Space(SigmaTime(), 20.0, 0.05, to_zero=to_zero)
    student = ld3.Student(solver, order, variant)
    random = np.random.RandomState(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jnp.asarray(random.randn(*leaf.shape)), ld3.initial(where, student, 4, method)
    )
    noise, target = jnp.asarray(random.randn(2, 2, 2, 1, 1))
    objective = ld3.Objective(ld3.l2, 20.0)

    def both(params):
        return ld3.loss(objective, where, student, GAUSSIAN, params, noise, target).mean()

    both = jax.jit(jax.value_and_grad(both))
    direction = jax.tree.map(lambda leaf: jnp.asarray(random.randn(*leaf.shape)), params)
    steps = [both(jax.tree.map(lambda p, d, e=e: p + e * d, params, direction))[0] for e in (1e-5, -1e-5)]
    along = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (both(params)[1], direction)), strict=True))
    np.testing.assert_allclose(along, (steps[0] - steps[1]) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver, order", [("dpmpp", 3), ("heun", 0)])
def test_unrolled_and_scanned_with_and_without_checkpointing_agree(solver, order):
    where, student = ld3.Space(SigmaTime(), 20.0, 0.05), ld3.Student(solver, order)
    params = ld3.initial(where, student, 4, "ld3" if solver == "heun" else "gs")
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape), params)
    noise = jnp.asarray(np.random.RandomState(0).randn(2, 2, 1, 1))

    def gradient(unrolled, checkpoint):
        def loss(params):
            return jnp.sum(ld3.solve(where, student, params, GAUSSIAN, 20 * noise, unrolled, checkpoint) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    wanted = gradient(True, False)
    for way in ((True, True), (False, False), (False, True)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), gradient(*way), wanted)


def test_the_first_logit_and_the_ends_of_shifts_change_nothing():
    where = ld3.Space(SigmaTime(), 20.0, 0.05)
    params = {"logits": jnp.array([1.0, 0.3, -0.2, 0.5]), "shifts": jnp.array([0.0, 0.4, -0.3, 0.0])}
    moved = {"logits": params["logits"].at[0].add(2.0), "shifts": params["shifts"].at[jnp.array([0, 3])].set(1.0)}
    for a, b in zip(ld3.grid(where, params), ld3.grid(where, moved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("bound", ld3.BOUNDS)
@pytest.mark.parametrize("mode", ["lambda", "time"])
@pytest.mark.parametrize("schedule", ["ve_edm", "vp_linear"])
def test_times_decrease_and_ends_stay_whatever_the_parameters(schedule, mode, bound):
    random = np.random.RandomState(0)
    where = space(schedule, mode, bound=bound)
    for _ in range(20):
        params = {"logits": jnp.asarray(3 * random.randn(6)), "shifts": jnp.asarray(10 * random.randn(6))}
        s, s_model = ld3.grid(where, params)
        assert (np.diff(s) < 0).all()
        np.testing.assert_allclose([s[0], s_model[0]], where.s_max, rtol=1e-9)
        np.testing.assert_allclose([s[-1], s_model[-1]], where.s_min, rtol=1e-9)
        if bound != "released":
            assert (np.diff(s_model) <= 1e-12).all()


def test_a_grid_that_ends_at_zero_frees_its_last_call():
    where = ld3.Space(SigmaTime(), 20.0, 0.05, to_zero=True)
    s, s_model = ld3.grid(where, {"logits": jnp.ones(5), "shifts": jnp.zeros(5)})
    np.testing.assert_allclose(s[:-1], time_grids.logsnr(4, 20.0, 0.05)[:-1], rtol=1e-12)
    assert s[-1] == 0 and s_model[-1] == 0


@pytest.mark.parametrize("mode", ["lambda", "time"])
def test_a_start_from_a_grid_is_that_grid(mode):
    where = space("vp_linear", mode)
    s = time_grids.edm(6, where.s_max, where.s_min)
    logits = ld3.logits_of(where, s)
    np.testing.assert_allclose(ld3.grid(where, {"logits": jnp.asarray(logits)}).s, s, rtol=1e-9)
    with pytest.raises(ValueError, match="decreasing noise scales between"):
        ld3.logits_of(where, s[::-1])


@pytest.mark.parametrize("method", sorted(ld3.LEARNED))
def test_before_learning_the_student_is_its_solver(method):
    where, student = ld3.Space(SigmaTime(), 20.0, 0.05), ld3.Student("dpmpp", 3)
    s = time_grids.edm(5, 20.0, 0.05)
    params = ld3.initial(where, student, 5, method, s)
    y = jnp.asarray(20 * np.random.RandomState(0).randn(2, 2, 1, 1))
    table = multistep.table("dpmpp", TimeGrid(s, s), order=3)
    wanted, _ = base.integrate(multistep.step, GAUSSIAN, multistep.init(y), table)
    np.testing.assert_allclose(ld3.solve(where, student, params, GAUSSIAN, y), wanted.y, rtol=1e-9, atol=1e-11)


def test_weights_of_s4s_are_what_they_are_said_to_be():
    """Each a share of what its row adds up to; those of a row together move as a tenth of a logit does."""
    where, student, n = ld3.Space(SigmaTime(), 20.0, 0.05), ld3.Student("dpmpp", 2), 6
    params = ld3.initial(where, student, n, "s4s")
    plain = np.asarray(ld3.rows(where, student, params).predict)
    weights = np.random.RandomState(0).randn(*params["weights"].shape)
    found = ld3.rows(where, student, params | {"weights": jnp.asarray(weights)}).predict
    for k in range(n):
        for j in range(weights.shape[1]):
            share = 0.1 / min(k + 1, weights.shape[1]) if j <= k else 0.0
            wanted = plain[k, j] + share * plain[k].sum() * weights[k, j]
            np.testing.assert_allclose(found[k, j], wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("sde", [SigmaTime(), VPSDE()], ids=["ve", "vp"])
def test_general_coefficients_are_what_they_are_said_to_be(sde):
    """A step of GS written out: the solver plus its corrections in eps and x0, with network times of their own."""
    where, student, n = ld3.Space(sde, 20.0, 0.05), ld3.Student("ddim"), 3
    random = np.random.RandomState(0)
    params = ld3.initial(where, student, n, "gs") | {"shifts": jnp.asarray(random.randn(n + 1))}
    params = params | {key: jnp.asarray(random.randn(n, n)) for key in ("on_eps", "on_x0")}
    s, told = (np.asarray(part) for part in ld3.grid(where, params))
    scale = np.asarray(sde.alpha(np.asarray(sde.time(s)))) / np.asarray(sde.alpha(np.asarray(sde.time(told))))
    y = jnp.asarray(20 * random.randn(2, 2, 1, 1))
    found = ld3.solve(where, student, params, GAUSSIAN, y)
    eps, x0 = [], []
    for k in range(n):
        x0.insert(0, GAUSSIAN(scale[k] * y, told[k]))
        eps.insert(0, (scale[k] * y - x0[0]) / told[k])
        y = x0[0] + s[k + 1] / s[k] * (y - x0[0])
        for j in range(k + 1):
            y = y + 0.1 / (k + 1) * (s[k + 1] - s[k]) * params["on_eps"][k, j] * eps[j]
            y = y + 0.1 / (k + 1) * (1 - s[k + 1] / s[k]) * params["on_x0"][k, j] * x0[j]
    np.testing.assert_allclose(found, y, rtol=1e-9)


def test_general_solver_samples_with_a_recording_and_counts_its_calls():
    n, s = 3, time_grids.edm(3, 20.0, 0.05)
    rows = general_solver.Rows(multistep.table("ddim", TimeGrid(s, s)), np.zeros((n, n)), np.tri(n) * 0.01)
    sampler = general_solver.create(rows, GAUSSIAN, (2, 2, 1), 20.0, record=True)
    operands, state = sampler.begin(jax.random.split(jax.random.key(0), 2))
    final, (states, x0) = base.integrate(sampler.step, operands, state, sampler.rows, chunk=2)
    assert sampler.nfe == 3 and states.shape == x0.shape == (3, 2, 2, 2, 1)
    np.testing.assert_array_equal(sampler.image(final), states[-1])


MORE = [pytest.param(*each, marks=pytest.mark.slow) for each in (("dpmpp", 2), ("deis", 2), ("ipndm_v", 3))]


@pytest.mark.parametrize("solver, order", [("unipc", 3), ("heun", 2), *MORE])
def test_solvers_converge_with_their_order_on_learned_grids(solver, order):
    """Grids refined from one that is anything but smooth in the noise scale: the weights follow the actual steps."""
    where = ld3.Space(SigmaTime(), 10.0, 0.1)
    student = ld3.Student(solver, 0 if solver == "heun" else order)
    noise = jnp.asarray(np.random.RandomState(0).randn(2, 2, 1, 1))
    logits, counts, errors = np.array([1.0, 0.4, -0.3, 0.8, 0.1]), [64, 128, 256], []
    for n in counts:
        # Positive, smooth in the step count, learned at the knots: the same density of steps at every n.
        density = np.interp(np.linspace(0, 4, n + 1), np.arange(5), logits)
        params = {"logits": jnp.asarray(density), "shifts": jnp.zeros(n + 1)}
        step, init = ld3.step_of(student, params)
        # The last steps are of lower order on purpose: they are left out.
        table = jax.tree.map(lambda leaf: np.asarray(leaf)[:-2], ld3.rows(where, student, params))
        found, _ = base.integrate(step, GAUSSIAN, init(10 * noise), table)
        exact = GAUSSIAN.flow(10 * noise, 10.0, float(ld3.grid(where, params).s[-3]))
        errors.append(float(jnp.abs(found.y - exact).max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope > order - 0.25, f"{solver}: order {slope:.2f}, errors {errors}"


def test_distances_are_means_over_the_pixels_of_an_image():
    x, target = jnp.full((2, 2, 2, 1), 0.5).at[1].set(2.0), jnp.zeros((2, 2, 2, 1))
    np.testing.assert_allclose(ld3.l2(x, target), [0.25, 4.0])
    np.testing.assert_allclose(ld3.l1(x, target), [0.5, 2.0])
    np.testing.assert_allclose(ld3.huber(x, target, 0.5), np.hypot([0.5, 2.0], 0.5) - 0.5)


def test_private_noise_stays_in_its_ball_and_only_training_sees_it():
    change = jnp.asarray(np.random.RandomState(0).randn(3, 2, 2, 1)) * jnp.array([1.0, 1e-3, 0.0])[:, None, None, None]
    kept = ld3.into_ball(change, 0.1)
    np.testing.assert_allclose(jnp.linalg.norm(kept.reshape(3, -1), axis=1)[0], 0.1)
    np.testing.assert_array_equal(kept[1:], change[1:])
    assert ld3.radius((32, 32, 3), 5) == pytest.approx(0.12288) and ld3.radius((32, 32, 3), 10) == pytest.approx(
        0.03072
    )
    where, student = ld3.Space(SigmaTime(), 20.0, 0.05), ld3.Student("ddim")
    objective = ld3.Objective(ld3.l2, 20.0, radius=0.1)
    noise = jnp.asarray(np.random.RandomState(1).randn(2, 2, 1, 1))
    params = ld3.initial(where, student, 3) | {"latents": jnp.ones((5, 2, 1, 1))}
    loss = functools.partial(ld3.loss, objective, where, student, GAUSSIAN, params, noise, jnp.zeros((2, 2, 1, 1)))
    shifted = ld3.loss(
        objective._replace(radius=0.0),
        where,
        student,
        GAUSSIAN,
        params,
        noise + 0.1 / np.sqrt(2),
        jnp.zeros((2, 2, 1, 1)),
    )
    np.testing.assert_allclose(loss(position=jnp.array([4, 0])), shifted, rtol=1e-10)
    assert not np.allclose(loss(), shifted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ld3.Space(SigmaTime(), 1.0, 2.0), "runs from s_max down to s_min"),
        (lambda: ld3.Space(SigmaTime(), 2.0, 1.0, share=0.6), r"config.ld3.share=0.6 lies in \(0, 0.5\]"),
        (lambda: ld3.Space(SigmaTime(), 2.0, 1.0, spacing="s"), "config.ld3.spacing='s'"),
        (lambda: ld3.Space(SigmaTime(), 2.0, 1.0, bound="free"), "config.ld3.bound='free'"),
        (
            lambda: ld3.initial(ld3.Space(SigmaTime(), 2.0, 1.0), ld3.Student("ddim"), 3, "gan"),
            r"config.ld3.learn='gan' is unknown; choose one of \['gs', 'ld3', 's4s'\]",
        ),
        (
            lambda: ld3.initial(ld3.Space(SigmaTime(), 2.0, 1.0), ld3.Student("heun"), 3, "gs"),
            "learns coefficients of a multistep solver; heun has none",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


RUNS = [("A", "unipc", 3, "bh1", 5), ("B", "dpmpp", 2, "", 5), ("D", "ipndm", 3, "", 6)]


@pytest.mark.slow
@pytest.mark.parametrize("run, solver, order, variant, n", RUNS)
def test_the_default_preset_ends_below_the_published_test_loss(run, solver, order, variant, n):
    import optax

    law, shape = (mixture("B"), (2, 1, 1)) if run == "B" else (mixture(), (3, 8, 8))
    noise, targets, test_noise, test_targets = map(jnp.asarray, pairs(run, 100, 512, shape, law))
    where, student = space("ve_edm"), ld3.Student(solver, order, variant)
    loss = functools.partial(ld3.loss, ld3.Objective(ld3.l2, 80.0), where, student, law)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.05, 300)))
    params = ld3.initial(where, student, n)
    judge = jax.jit(lambda params, z, target: loss(params, z, target).mean())
    before, _, wanted = golden("runs.npz")[f"{run}/test_loss"]
    np.testing.assert_allclose(judge(params, test_noise, test_targets), before, rtol=1e-6)

    @jax.jit
    def update(params, state):
        gradients = jax.grad(lambda params: loss(params, noise[:50], targets[:50]).mean())(params)
        change, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, change), state

    state, best = optimizer.init(params), (np.inf, params)
    for number in range(300):
        params, state = update(params, state)
        if number % 20 == 19:
            best = min(best, (float(judge(params, noise[50:], targets[50:])), params), key=lambda pair: pair[0])
    assert judge(best[1], test_noise, test_targets) <= wanted
