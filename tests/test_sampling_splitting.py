"""Splitting: the published program's trajectories, measured orders, counted calls, stability, no recompilation."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import CallLog, Counted, Gaussian

from sampling import (
    base,
    conditional,
    guidance,
    inverse_problems,
    multistep,
    operators,
    splitting,
    thresholding,
    time_grids,
)
from sampling.base import TimeGrid
from sampling.guidance import Contrast, OnEstimate, Schedule
from sampling.splitting import Settings

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "splitting"
CHUNK = 40  # one length for every run: one compiled program a step function


@pytest.fixture(scope="module")
def published():
    with np.load(GOLDENS / "published.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def corrected():
    with np.load(GOLDENS / "corrected.npz") as file:
        return {key: file[key] for key in file.files}


class PixelMixture(NamedTuple):
    """Pixels are independent mixtures of Gaussians."""

    weights: Any  # [k]
    means: Any  # [k, h, w, c]
    stds: Any  # [k]

    def __call__(self, y, s):
        variance = (self.stds**2 + s**2)[:, None, None, None, None]
        distance = y[None] - self.means[:, None]
        log_weights = jnp.log(self.weights)[:, None, None, None, None] - 0.5 * jnp.log(variance)
        share = jax.nn.softmax(log_weights - distance**2 / (2 * variance), axis=0)
        return y - s**2 * jnp.sum(share * distance / variance, axis=0)


class Target(NamedTuple):
    """The published analytic guidance, written with its VP gradient: grad_y = alpha grad_x."""

    target: Any
    tau: Any
    scale: Any

    def __call__(self, y, s):
        alpha = 1 / jnp.sqrt(1 + s**2)
        x = alpha * y
        return alpha * self.scale * (alpha * self.target[None] - x) / (self.tau**2 * alpha**2 + 1 - alpha**2)


class TanhClassifier(NamedTuple):
    """The published classifier case; told the base index whose noise scale is nearest."""

    a: Any
    tvec: Any
    b: Any
    bias: Any
    scale: Any
    labels: Any
    ladder: Any

    def __call__(self, y, s):
        t = jnp.argmin(jnp.abs(self.ladder - s))

        def log_prob(y):
            x = jnp.moveaxis(y / jnp.sqrt(1 + s**2), -1, 1).reshape(len(y), -1)
            logits = jnp.tanh(x @ self.a.T + (t / 1000 * self.tvec)[None]) @ self.b.T + self.bias[None]
            return self.scale * jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(len(y)), self.labels])

        return jax.grad(log_prob)(y)


class Impute(NamedTuple):
    mask: Any
    known: Any

    def __call__(self, y, s):
        return self.mask[None] * self.known[None] + (1 - self.mask[None]) * y


@jax.tree_util.register_pytree_node_class
class CountedGuidance:
    """A guidance whose calls are logged, at the cost it states."""

    def __init__(self, guidance, log):
        self.guidance, self.log = guidance, log

    def __call__(self, y, s):
        jax.debug.callback(self.log, s, ordered=True)
        return self.guidance(y, s)

    def flow(self, y, s, s_next, weight):
        jax.debug.callback(self.log, s, ordered=True)
        return self.guidance.flow(y, s, s_next, weight)

    def tree_flatten(self):
        return (self.guidance,), self.log

    @classmethod
    def tree_unflatten(cls, log, children):
        return cls(children[0], log)


def run(settings, grid, denoiser, y, guide=None, schedule=guidance.UNIT, projection=None, **facts):
    schedule = schedule if guide is not None else Schedule(0.0)
    plan = splitting.plan(settings, grid, schedule, projects=projection is not None, **facts)
    operands = splitting.operands(settings, denoiser, guide, schedule, projection)
    end, _ = base.integrate(plan.step, operands, plan.init(jnp.asarray(y)), plan.rows, CHUNK)
    return end, plan


def data(golden):
    return PixelMixture(*(jnp.asarray(golden[key]) for key in ("gm_w", "gm_mu", "gm_s")))


LADDER = time_grids.ddpm_noise_scales(np.linspace(1e-4, 0.02, 1000))


def published_guidance(golden, case):
    if case == "none":
        return None
    if case == "gauss":
        return Target(*(jnp.asarray(golden[key]) for key in ("y_target", "g_tau", "g_scale")))
    keys = ("cls_A", "cls_tvec", "cls_B", "cls_b", "cls_scale", "labels")
    return TanhClassifier(*(jnp.asarray(golden[key]) for key in keys), jnp.asarray(LADDER))


# --- against the published program and an independent one ------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize("case", ["none_clip0", "gauss_clip0", "cls_clip0", "cls_clip1", "cls_impute"])
def test_every_published_method_ends_where_the_published_program_does(published, n, case):
    kind, variant = case.split("_")
    s = time_grids.with_zero(LADDER[published[f"{n}/timestep_map"]][::-1])
    denoiser = thresholding.thresholded(data(published), "static" if variant == "clip1" else "none", centered=True)
    projection = Impute(*(jnp.asarray(published[k]) for k in ("mask", "known"))) if variant == "impute" else None
    y = np.sqrt(1 + s[0] ** 2) * published["noise"]
    for index, method in enumerate(published[f"{n}/{case}/methods"]):
        settings = splitting.settings(str(method), n, "official")
        end, _ = run(settings, TimeGrid(s, s), denoiser, y, published_guidance(published, kind), projection=projection)
        error = np.abs(end.y[:, ::2, ::2] - published[f"{n}/{case}/final"][index]).max()
        assert error < 1e-7 * published[f"{n}/{case}/largest"][index], (method, error)


@pytest.mark.parametrize("n", [10, 20])
def test_official_rows_call_at_the_levels_and_in_the_order_of_the_published_program(published, n):
    s = time_grids.with_zero(LADDER[published[f"{n}/timestep_map"]][::-1])
    for index, method in enumerate(published[f"{n}/cls_clip0/methods"]):
        kinds, levels = (published[f"{n}/cls_clip0/{key}"][index] for key in ("call_kind", "call_t"))
        kinds, levels = kinds[kinds >= 0], levels[kinds >= 0]
        settings = splitting.settings(str(method), n, "official")
        plan = splitting.plan(settings, TimeGrid(s, s), guidance.UNIT)
        assert (plan.nfe, plan.gradient_calls) == (np.sum(kinds == 0), np.sum(kinds == 1)), method
        if settings.splitting != "none":
            told = np.where(plan.rows.kind == splitting.SOLVE, plan.rows.solver.s_model, plan.rows.kick.s)
            np.testing.assert_array_equal(plan.rows.kind, kinds)
            np.testing.assert_allclose(told, LADDER[levels], rtol=1e-10)


def scheme(name):
    if name == "stheun_heun":
        return Settings("strang", "heun", conditional="heun")
    split, weights, kick = name.split("_")
    names = {"none": "none", "lt": "lie_trotter", "st": "strang"}
    return Settings(names[split[:-1]], {"uni": "ipndm", "var": "ipndm_v"}[weights], int(split[-1]), kick)


def test_corrected_schemes_end_where_an_independent_program_does(published, corrected):
    guide = inverse_problems.Direct(
        operators.Inpainting(jnp.ones((8, 8, 1))), jnp.asarray(published["y_target"])[None], float(corrected["tau"])
    )
    grid = TimeGrid(corrected["grid"], corrected["grid"])
    for name, final in zip(corrected["schemes"], corrected["final"], strict=True):
        schedule = Schedule(float(corrected["scale"]))
        end, _ = run(scheme(str(name)), grid, data(published), corrected["x_init"], guide, schedule)
        np.testing.assert_allclose(end.y[:, ::2, ::2], final, rtol=0, atol=1e-11, err_msg=name)


# --- orders as they really are ---------------------------------------------------------------------------------------

ORDERS = {
    ("none", "ddim", "euler"): 1,
    ("none", "ipndm_v", "euler"): 2,
    ("none", "dpmpp", "euler"): 2,
    ("none", "heun", "euler"): 2,
    **{
        ("lie_trotter", solver, kick): 1
        for solver, kick in [("ddim", "euler"), ("ipndm", "euler"), ("ipndm_v", "euler"), ("unipc", "euler")]
        + [("heun", "euler"), ("heun", "heun"), ("heun", "flow"), ("ipndm_v", "flow")]
    },
    # The points of a multistep history lie on flows that kicks separate.
    **{
        ("strang", solver, kick): 1
        for solver in ("ddim", "ipndm", "ipndm_v", "deis", "ghvb", "dpmpp", "unipc")
        for kick in ("euler", "heun", "flow")
    },
    ("strang", "heun", "euler"): 1,
    ("strang", "dpmpp_2s", "euler"): 1,
    ("strang", "heun", "heun"): 2,
    ("strang", "dpmpp_2s", "heun"): 2,
    ("strang", "heun", "flow"): 2,
    ("strang", "dpmpp_2s", "flow"): 2,
}


@pytest.mark.parametrize("splitting_name, solver, kick", ORDERS)
def test_the_global_order_is_that_of_the_splitting_not_of_the_solver(
    published, corrected, splitting_name, solver, kick
):
    guide = inverse_problems.Direct(
        operators.Inpainting(jnp.ones((8, 8, 1))), jnp.asarray(published["y_target"])[None], float(corrected["tau"])
    )
    counts, errors = (80, 320), []
    for n in counts:
        s = time_grids.edm(n, float(corrected["sigma_max"]), float(corrected["sigma_min"]))
        settings = Settings(splitting_name, solver, conditional=kick)
        end, _ = run(settings, TimeGrid(s, s), data(published), corrected["x_init"], guide)
        errors.append(float(np.sqrt(np.mean((end.y - corrected["ref"]) ** 2))))
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(order - ORDERS[splitting_name, solver, kick]) < 0.3, f"order {order:.2f}, errors {errors}"


# --- calls -----------------------------------------------------------------------------------------------------------

DATA = Gaussian(jnp.asarray(0.3), jnp.asarray(0.5))
OBSERVED = inverse_problems.Direct(operators.Inpainting(jnp.ones((2, 2, 1))), jnp.full((1, 2, 2, 1), 0.7), 0.2)
LOGS = CallLog(), CallLog()  # one pair: a new one would compile anew
S = np.array([9.0, 3.0, 1.0, 0.3, 0.0])


@pytest.mark.parametrize(
    "settings, nfe, gradients",
    [
        (splitting.settings("ddim", 4), 4, 4),
        (splitting.settings("plms2", 4), 4, 4),
        (splitting.settings("plms2", 4, "official"), 5, 5),
        (splitting.settings("heun", 4), 7, 7),
        (splitting.settings("ltsp2", 4), 4, 4),
        (splitting.settings("stsp2", 4), 4, 8),
        (splitting.settings("stsp2", 4, "official"), 4, 8),
        (splitting.settings("stsp2", 4, solver="heun"), 7, 8),
        (splitting.settings("stsp2", 4, solver="dpmpp_2s"), 7, 8),
        (splitting.settings("stsp2", 4, conditional="heun"), 4, 15),  # Euler into s = 0
        (splitting.settings("stsp2", 4, conditional="flow"), 4, 8),
        (splitting.settings("ltsp2", 4, substeps=3), 4, 12),
    ],
    ids=str,
)
@pytest.mark.parametrize("interval, inside", [((0.0, 99.0), 1.0), ((0.5, 5.0), 0.5)])
def test_the_stated_calls_are_the_calls_that_happen(settings, nfe, gradients, interval, inside):
    network, gradient = LOGS
    network.noise_scales.clear()
    gradient.noise_scales.clear()
    guide = CountedGuidance(OBSERVED, gradient)
    schedule = guidance.schedule(0.5, interval)
    end, plan = run(settings, TimeGrid(S, S), Counted(DATA, network), np.ones((2, 2, 2, 1)), guide, schedule)
    jax.block_until_ready(end)
    jax.effects_barrier()
    assert (plan.nfe, plan.gradient_calls) == (len(network.noise_scales), len(gradient.noise_scales))
    if inside == 1:
        assert (plan.nfe, plan.gradient_calls) == (nfe, gradients)
    else:
        assert 0 < plan.gradient_calls < gradients and plan.nfe == nfe
        # A flow acts on a whole kick, and is left out by the middle of it.
        low, high = interval if settings.conditional != "flow" else (0.3, 9.0)
        assert all(low <= s <= high for s in gradient.noise_scales)


def test_network_calls_of_the_guidance_are_counted_and_shared_where_they_can_be():
    log, grid = CallLog(), TimeGrid(S, S)
    denoiser = Counted(DATA, log)
    contrast = Contrast(denoiser, Counted(Gaussian(0.1, 0.9), log))
    estimate = OnEstimate(denoiser, jax.tree_util.Partial(lambda x0, s: -jnp.sum(x0**2, axis=(1, 2, 3))))
    expected = {("none", 0): (8, 0), ("none", 1): (4, 4), ("lie_trotter", 0): (12, 0), ("strang", 1): (12, 8)}
    for (name, which), calls in expected.items():
        guide = (contrast, estimate)[which]
        log.noise_scales.clear()
        sampler = splitting.create(
            Settings(name, "ddim"), denoiser, grid, (2, 2, 1), 9.0, lambda keys, guide=guide: guide, Schedule(0.1)
        )
        operands, start = sampler.begin(jax.random.split(jax.random.key(0), 1))
        jax.block_until_ready(base.integrate(sampler.step, operands, start, sampler.rows, CHUNK))
        jax.effects_barrier()
        assert (sampler.nfe, sampler.gradient_calls) == calls
        assert len(log.noise_scales) == calls[0]


def test_nothing_compiles_for_another_scale_interval_step_count_or_splitting():
    guide = jax.tree_util.Partial(lambda y, s: -y)

    def go(name, n, **schedule):
        s = time_grids.with_zero(time_grids.edm(n - 1, 9.0, 0.1))
        run(Settings(name, "ipndm_v", 2), TimeGrid(s, s), DATA, np.ones((1, 2, 2, 1)), guide, Schedule(**schedule))

    go("strang", 5, scale=0.1)
    before = base._scan_chunk._cache_size()
    go("strang", 7, scale=0.3, low=0.2, high=4.0, clip=1.0)
    go("lie_trotter", 9, scale=0.2)
    assert base._scan_chunk._cache_size() == before


# --- what the corrected scheme promises ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ltsp1", "stsp1"])
def test_the_finished_image_is_the_network_estimate_untouched_by_guidance(method):
    end, plan = run(splitting.settings(method, 4), TimeGrid(S, S), DATA, np.ones((1, 2, 2, 1)), OBSERVED)
    assert plan.rows.kind[-1] == splitting.SOLVE
    np.testing.assert_allclose(end.y, end.x0, rtol=1e-14)
    official, _ = run(splitting.settings("stsp1", 4, "official"), TimeGrid(S, S), DATA, np.ones((1, 2, 2, 1)), OBSERVED)
    assert abs(official.y - official.x0).max() > 1e-4


def test_kicks_of_the_corrected_scheme_take_weight_and_gradient_at_their_own_start():
    plan = splitting.plan(splitting.settings("stsp2", 4), TimeGrid(S, S), Schedule(2.0))
    kicks = jax.tree.map(lambda column: column[plan.rows.kind == splitting.KICK], plan.rows.kick)
    np.testing.assert_allclose(kicks.s, [9, 6, 3, 2, 1, 0.65, 0.3, 0.15])
    np.testing.assert_allclose(kicks.gain, 2 * kicks.s * (kicks.s - kicks.s_next))
    np.testing.assert_array_equal(plan.rows.kind, [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(plan.ends, [2, 5, 8, 11])


def test_the_last_official_kick_shows_the_finished_image_itself_at_the_last_level():
    plan = splitting.plan(splitting.settings("stsp1", 4, "official"), TimeGrid(S, S), guidance.UNIT)
    kick = jax.tree.map(lambda column: jnp.asarray(column[-1]), plan.rows.kick)
    seen = jax.tree_util.Partial(lambda y, s: y / jnp.sqrt(1 + s**2))  # what a VP classifier is fed
    y = jnp.full((1, 1, 1, 1), 0.7)
    assert kick.s == 0.3
    np.testing.assert_allclose(conditional.euler(seen, y, kick), kick.gain * y, rtol=1e-12)


def test_a_heun_kick_into_noise_zero_is_eulers():
    kick = jax.tree.map(lambda column: jnp.asarray(column[0]), conditional.kicks(np.array([0.3, 0.0]), Schedule(2.0)))
    y = jnp.full((1, 2, 2, 1), 0.4)
    np.testing.assert_array_equal(conditional.heun(OBSERVED, y, kick), conditional.euler(OBSERVED, y, kick))


def test_without_guidance_both_splittings_are_the_plain_solver():
    y = np.ones((1, 2, 2, 1))
    ends = [run(Settings(name, "ipndm_v", 2), TimeGrid(S, S), DATA, y)[0].y for name in splitting.SPLITTINGS]
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


def test_network_times_learned_apart_keep_what_the_network_is_fed():
    told, y = 0.9 * S, np.ones((1, 2, 2, 1))
    grid, scale = TimeGrid(S, told), np.sqrt((1 + told[:-1] ** 2) / (1 + S[:-1] ** 2))  # alpha(s)/alpha(s_model) of VP
    fed = multistep.table("ipndm_v", grid, scale, order=2)
    state = multistep.init(jnp.asarray(y))
    for n in range(grid.num_steps):
        state, _ = multistep.step(DATA, state, jax.tree.map(lambda column, n=n: column[n], fed))
    for name in splitting.SPLITTINGS:
        end, _ = run(Settings(name, "ipndm_v", 2), grid, DATA, y, input_scale=scale)
        np.testing.assert_allclose(end.y, state.y, rtol=1e-12)
    unscaled, _ = run(Settings("strang", "ipndm_v", 2), grid, DATA, y)
    assert np.abs(unscaled.y - end.y).max() > 1e-3, "the factor acts"


def test_splitting_survives_strong_guidance_that_blows_up_every_unsplit_multistep_solver():
    s = time_grids.with_zero(LADDER[time_grids.respaced_indices("10", 1000)][::-1])
    target = inverse_problems.Direct(operators.Inpainting(jnp.ones((2, 2, 1))), jnp.full((1, 2, 2, 1), 0.4), 0.1)

    def largest(method, compat, **changes):
        y = s[0] * jax.random.normal(jax.random.key(1), (4, 2, 2, 1))
        settings = splitting.settings(method, 10, compat, **changes)
        end, _ = run(settings, TimeGrid(s, s), DATA, y, target, Schedule(3.0))
        return float(jnp.abs(end.y).max())

    assert largest("plms4", "official") > 1e3
    assert largest("plms2", "official") > 30
    for method in ("ltsp2", "stsp2"):
        assert largest(method, "official") < 3
        assert largest(method, "corrected") < 3
        assert largest(method, "corrected", conditional="flow") < 1


@pytest.mark.parametrize(
    "order, steps, stable", [(4, 10, 2), (4, 14, 2), (4, 15, 3), (4, 19, 3), (4, 20, 4), (1, 5, 1), (2, 50, 2)]
)
def test_few_steps_lower_the_order(order, steps, stable):
    assert splitting.settings(f"stsp{order}", steps).order == stable
    assert splitting.settings(f"stsp{order}", steps, "official").order == order


def test_a_projection_follows_each_step_at_its_new_noise_scale():
    seen = []

    class Spy(NamedTuple):
        def __call__(self, y, s):
            jax.debug.callback(lambda s: seen.append(float(s)), s, ordered=True)
            return y

    jax.block_until_ready(
        run(splitting.settings("stsp2", 4), TimeGrid(S, S), DATA, np.ones((1, 1, 1, 1)), None, projection=Spy())[0]
    )
    jax.effects_barrier()
    assert seen == [3.0, 1.0, 0.3, 0.0]


# --- sub-cycling -----------------------------------------------------------------------------------------------------


def test_the_stiffness_of_a_kick_is_one_minus_what_euler_leaves_of_the_residual():
    nodes, schedule = np.array([1.0, 0.4]), Schedule(2.0)
    kick = jax.tree.map(lambda column: jnp.asarray(column[0]), conditional.kicks(nodes, schedule))
    y = jnp.full((1, 2, 2, 1), 5.0)
    left = (0.7 - (y + conditional.euler(OBSERVED, y, kick))) / (0.7 - y)
    stiffness = conditional.stiffness(conditional.kicks(nodes, schedule), OBSERVED.curvature)
    np.testing.assert_allclose(left, np.broadcast_to(1 - stiffness, (1, 2, 2, 1)), rtol=1e-12)


def test_automatic_substeps_are_as_long_as_stability_allows_and_no_shorter():
    nodes = conditional.subdivide(3.0, 1.0, Schedule(4.0), OBSERVED.curvature, 0)
    assert nodes[0] == 3 and nodes[-1] == 1
    stiffness = conditional.stiffness(conditional.kicks(nodes, Schedule(4.0)), OBSERVED.curvature)
    np.testing.assert_allclose(stiffness[:-1], 1, rtol=1e-12)
    assert 0 < stiffness[-1] <= 1
    np.testing.assert_array_equal(conditional.subdivide(3.0, 1.0, Schedule(0.1), OBSERVED.curvature, 0), [3, 1])
    exact = inverse_problems.Direct(OBSERVED.operator, OBSERVED.observed, 0.0)
    endless = conditional.subdivide(3.0, 0.0, Schedule(4.0), exact.curvature, 0)
    assert len(endless) == conditional.MOST_SUBSTEPS + 1 and endless[-1] == 0


def test_a_kick_too_long_is_warned_of_and_mended_by_automatic_substeps():
    grid, strong = TimeGrid(S, S), Schedule(8.0)
    plain, automatic = Settings("strang", "ddim"), Settings("strang", "ddim", substeps=0)
    warning = splitting.stability_warning(plain, grid, strong, OBSERVED.curvature)
    assert warning and "stiffness" in warning and "substeps=0" in warning
    assert splitting.stability_warning(automatic, grid, strong, OBSERVED.curvature) is None
    assert splitting.stability_warning(plain, grid, Schedule(0.5), OBSERVED.curvature) is None
    y, ends = 9 * np.ones((1, 2, 2, 1)), {}
    exact, _ = run(Settings("strang", "ddim", conditional="flow"), grid, DATA, y, OBSERVED, strong)
    for settings in (plain, automatic):
        ends[settings], _ = run(settings, grid, DATA, y, OBSERVED, strong, curvature=OBSERVED.curvature)
    assert abs(ends[automatic].y - exact.y).max() < 0.1 * abs(ends[plain].y - exact.y).max()


def test_power_iteration_finds_the_curvature_that_a_closed_form_states():
    states = jax.random.normal(jax.random.key(0), (3, 2, 2, 2, 1))
    levels = np.array([3.0, 1.0, 0.1])
    measured = conditional.measured_curvature(OBSERVED, states, levels, jax.random.key(1))
    np.testing.assert_allclose(measured(levels), OBSERVED.curvature(levels), rtol=1e-6)
    assert measured(np.array([0.01])) == measured(np.array([0.1]))


# --- the sampler -----------------------------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """A guidance with something of each image's own."""

    target: Any

    def __call__(self, y, s):
        return (self.target[:, None, None, None] - y) / (1 + s**2)


def test_an_image_depends_on_its_key_alone_and_sharding_changes_nothing():
    def guide(keys):
        return Labelled(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 7)))(keys).astype(jnp.float32))

    sampler = splitting.create(
        splitting.settings("stsp2", 4), DATA, TimeGrid(S, S), (2, 2, 1), 9.0, guide, Schedule(0.5), record=True
    )
    keys = jax.random.split(jax.random.key(3), 4)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    ends = [
        base.integrate(sampler.step, *start, sampler.rows, 5)
        for start in (sampler.begin(keys), sampler.begin(keys[2:]), base.begin_on(mesh, sampler, keys))
    ]
    assert ends[0][0].y.dtype == jnp.float32 and len(jnp.unique(ends[0][0].y)) == 16
    np.testing.assert_allclose(ends[0][0].y[2:], ends[1][0].y, rtol=1e-6)
    np.testing.assert_allclose(ends[0][0].y, ends[2][0].y, rtol=1e-6)
    plan = splitting.plan(splitting.settings("stsp2", 4), TimeGrid(S, S), Schedule(0.5))
    states, estimates = plan.select_steps(ends[0][1])
    assert states.shape == estimates.shape == (4, 4, 2, 2, 1)
    np.testing.assert_array_equal(states[-1], ends[0][0].y)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: splitting.settings("stps4", 10), r"--method='stps4' is unknown; did you mean 'stsp4'\?"),
        (lambda: splitting.settings("stsp5", 10), "'stsp5' is unknown; did you mean 'stsp"),
        (lambda: splitting.settings("???", 10), r"choose one of \['ddim'"),
        (lambda: Settings(compat="published"), r"guidance.compat='published' is unknown; choose one of \['corrected'"),
        (lambda: Settings(conditional="rk4"), "guidance.conditional='rk4' is unknown"),
        (lambda: Settings(substeps=-1), "guidance.substeps=-1"),
        (lambda: Settings(compat="official", conditional="flow"), "published program has Euler kicks only"),
        (lambda: splitting.plan(Settings(substeps=0), TimeGrid(S, S), Schedule(1.0)), "needs the curvature of log p"),
        (
            lambda: splitting.create(
                Settings(conditional="flow"), DATA, TimeGrid(S, S), (1, 1, 1), 9.0, lambda keys: Contrast(DATA, DATA)
            ),
            "conditional='flow': Contrast guidance has no flow",
        ),
        (lambda: splitting.plan(Settings(solver="heun", order=2), TimeGrid(S, S), Schedule(1.0)), "heun has one order"),
        (
            lambda: splitting.plan(splitting.settings("stsp4", 20), TimeGrid(S[:3], S[:3]), Schedule(1.0)),
            "order 4 needs at least 4 steps, got 2",
        ),
        (
            lambda: splitting.plan(splitting.settings("plms2", 1, "official"), TimeGrid(S[:2], S[:2]), Schedule(1.0)),
            "plms2 as published needs at least 2 steps, got 1",
        ),
        (
            lambda: splitting.plan(Settings(solver="heun"), TimeGrid(S, S), Schedule(1.0), input_scale=S[:-1]),
            "heun feeds its network at the times it steps to",
        ),
        (
            lambda: splitting.create(
                splitting.settings("plms2", 4, "official"), DATA, TimeGrid(S, S), (1, 1, 1), 9.0, input_scale=S[:-1]
            ),
            "plms2 feeds its network at the times it steps to",
        ),
    ],
)
def test_bad_settings_say_what_to_change(make, message):
    with pytest.raises(ValueError, match=message):
        make()
