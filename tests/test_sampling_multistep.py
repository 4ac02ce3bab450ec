"""Multistep solvers: published trajectories, exactness and orders from closed forms, call counts, gradients, errors."""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import CLOCKS, CallLog, Counted, Gaussian, Mixture

import sde_lib
from sampling import base, multistep, time_grids
from sampling.base import TimeGrid

GOLDENS = pathlib.Path(__file__).parent / "goldens"
CHUNK = 5  # one compiled program for all runs of one image shape


def run(rows, denoiser, y, chunk=CHUNK):
    return base.integrate(multistep.step, denoiser, multistep.init(jnp.asarray(y)), rows, chunk)[0].y


def grid_of(s, s_model=None):
    return TimeGrid(np.asarray(s), np.asarray(s if s_model is None else s_model))


# --- the published LD3 solvers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ld3():
    return {name: dict(np.load(GOLDENS / "ld3" / f"{name}.npz")) for name in ("model", "grids", "solver_outputs")}


def ld3_case(key, ld3):
    """-> denoiser, start y, alpha at the end, table; for a key like vp_linear/unipc_bh1_o3/logSNR/N5."""
    schedule, name, skip, steps = key.split("/")
    clock, model, outputs = CLOCKS[schedule], ld3["model"], ld3["solver_outputs"]
    denoiser = Mixture(*(jnp.asarray(model[field]) for field in ("weights", "means", "stds")))
    if skip == "decoupled":
        t, t_model = outputs[f"{key}/t1"], outputs[f"{key}/t2"]
    else:
        t = t_model = ld3["grids"][f"{schedule}/{skip}/{steps}"]
    solver, *options = name.split("_")
    settings = {"order": int(options[-1][1:])} if options else {}
    if solver == "unipc":
        settings["variant"] = options[0]
    grid = TimeGrid(clock.noise_scale(t), clock.noise_scale(t_model))
    input_scale = (clock.alpha(t) / clock.alpha(t_model))[:-1]
    x = model["latent"] * (80 if schedule == "ve_edm" else 1)
    return denoiser, x / clock.alpha(t[0]), clock.alpha(t), multistep.table(solver, grid, input_scale, **settings)


def ld3_keys():
    with np.load(GOLDENS / "ld3" / "solver_outputs.npz") as outputs:
        return [name.removesuffix("/x64") for name in outputs.files if name.endswith("/x64")]


def test_all_195_published_ld3_trajectories_end_where_ours_do(ld3):
    keys = ld3_keys()
    assert len(keys) == 195
    for key in keys:
        denoiser, y, alpha, rows = ld3_case(key, ld3)
        ours = alpha[-1] * np.asarray(run(rows, denoiser, y))[:, :, ::2, ::2]
        np.testing.assert_allclose(ours, ld3["solver_outputs"][f"{key}/x64"], rtol=0, atol=1e-9, err_msg=key)


def test_every_network_input_and_corrected_state_is_the_published_one(ld3):
    outputs = ld3["solver_outputs"]
    for key in [name.removesuffix("/calls_x") for name in outputs if name.endswith("/calls_x")]:
        denoiser, y, alpha, rows = ld3_case(key, ld3)
        state, inputs, corrected = multistep.init(jnp.asarray(y)), [], []
        for n in range(len(alpha) - 1):
            row = jax.tree.map(lambda leaf, n=n: leaf[n], rows)
            inputs.append(alpha[n] * state.y[:, :, ::4, ::4])
            before, (state, _) = state, multistep.step(denoiser, state, row)
            corrected.append(before.y + multistep.combine(jnp.asarray(row.correct), state.history))
        published = outputs[f"{key}/calls_x"][: len(inputs)]  # the program's extra call at the end is left out
        np.testing.assert_allclose(inputs, published, rtol=0, atol=1e-9, err_msg=key)
        if f"{key}/states" in outputs:
            states = np.stack([a * x[:, :, ::4, ::4] for a, x in zip(alpha, [*corrected, state.y], strict=True)])
            np.testing.assert_allclose(states, outputs[f"{key}/states"], rtol=0, atol=1e-9, err_msg=key)


UPPER_ENDS = np.round(np.linspace(0, 999, 11)).astype(int)[1:]  # of ten even intervals, for the schedulers in lam

# --- the diffusers schedulers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, indices, solver, settings",
    [
        ("ddim_eta0", "ddim10", "ddim", {}),
        ("ddim_eta0_trailing", np.arange(99, 1000, 100), "ddim", {}),
        ("euler", "10", "euler", {}),
        ("dpmpp_2m", UPPER_ENDS, "dpmpp", {"order": 2}),
        ("unipc_o2_bh2", UPPER_ENDS, "unipc", {"order": 2, "variant": "bh2"}),
    ],
)
def test_diffusers_schedulers_end_at_zero_noise_where_ours_do(name, indices, solver, settings):
    golden = np.load(GOLDENS / "diffusers" / f"sched_{name}.npz")
    denoiser = Mixture(jnp.asarray(golden["pi"]), jnp.asarray(golden["mu"]), jnp.sqrt(golden["s2"]))
    scales = time_grids.ddpm_noise_scales(np.linspace(1e-4, 0.02, 1000))
    s = time_grids.respaced(indices, scales) if isinstance(indices, str) else np.append(scales[indices][::-1], 0.0)
    np.testing.assert_allclose(s[:-1], np.interp(golden["timesteps"], np.arange(1000), scales), rtol=1e-12)
    rows = multistep.table(solver, grid_of(s), **settings)
    vp = json.loads(str(golden["config_json"]))["kind"] == "vp"
    y = golden["x"][0] * (np.sqrt(1 + s[0] ** 2) if vp else 1)
    np.testing.assert_allclose(run(rows, denoiser, y), golden["x"][-1], rtol=1e-5, atol=1e-5)


def test_diffusers_edm_euler_walks_our_rho_grid():
    golden = np.load(GOLDENS / "diffusers" / "sched_edm_euler.npz")
    denoiser = Mixture(jnp.asarray(golden["pi"]), jnp.asarray(golden["mu"]), jnp.sqrt(golden["s2"]))
    s = time_grids.with_zero(time_grids.edm(11, 80.0, 0.002))
    np.testing.assert_allclose(s, golden["sigmas"], rtol=1e-6)
    np.testing.assert_allclose(
        run(multistep.ddim(grid_of(s)), denoiser, golden["x"][0]), golden["x"][-1], rtol=1e-5, atol=1e-5
    )


# --- exactness and order ---------------------------------------------------------------------------------------------

UNEVEN = np.array([9.0, 5.0, 3.5, 2.6, 1.2, 0.5, 0.2])


def defects(rows, grid, y, x0):
    """What each row leaves of an exact solution y(s) whose x0 estimates are x0(s), given exact history."""
    states, history = [], np.zeros(multistep.HISTORY)
    for n in range(grid.num_steps):
        s = grid.s[n]
        newest = rows.from_y[n] * y(s) + rows.from_x0[n] * x0(s) + rows.from_newest[n] * history[0]
        history = np.append(newest, history[:-1])
        states.append(rows.scale[n] * y(s) + rows.predict[n] @ history - y(grid.s[n + 1]))
    return np.array(states)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_variable_step_adams_bashforth_is_exact_for_polynomial_eps(order):
    grid, degree = grid_of(UNEVEN), order - 1
    rows = multistep.ipndm_v(grid, order)
    # eps = s^degree, so y = s^order/order and x0 = y - s eps.
    error = defects(rows, grid, lambda s: s**order / order, lambda s: s**order / order - s * s**degree)
    assert np.abs(error[order - 1 :]).max() < 1e-11
    if order > 1:
        assert np.abs(error[: order - 1]).min() > 1e-3


@pytest.mark.parametrize("order", [2, 3, 4])
def test_deis_is_exact_for_eps_polynomial_in_the_time_it_interpolates_in(order):
    grid = grid_of(UNEVEN)
    rows = multistep.deis(grid, order, time=np.sqrt)  # s = t^2, so eps = t^degree has a closed integral
    p = (order - 1) / 2
    error = defects(rows, grid, lambda s: s ** (p + 1) / (p + 1), lambda s: s ** (p + 1) / (p + 1) - s * s**p)
    assert np.abs(error[order - 1 :]).max() < 1e-11


def test_deis_interpolates_in_linear_vp_time_unless_told_otherwise():
    vp = multistep.deis(grid_of(UNEVEN), 3, time=sde_lib.VPSDE().time)
    np.testing.assert_array_equal(multistep.deis(grid_of(UNEVEN), 3).predict, vp.predict)
    assert np.abs(vp.predict - multistep.ipndm_v(grid_of(UNEVEN), 3).predict).max() > 0.01


DATA = Gaussian(0.3, 0.5)


def exact(s):
    return DATA.flow(2.0, 3.0, s)


def local_order(solver, row, **settings):
    """log2 ratio of one row's defects at two step sizes, from s = 1.3 on an even grid in the solver's own variable."""
    errors = []
    for h in (0.04, 0.02):
        n = np.arange(9) - row
        s = 1.3 * np.exp(-h * n) if solver in ("ddim", "dpmpp", "unipc") else 1.3 - h * n
        rows = multistep.table(solver, grid_of(s), **settings)
        errors.append(abs(defects(rows, grid_of(s), exact, lambda s: DATA(exact(s), s))[row]))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize(
    "solver, settings, order",
    [
        ("ddim", {}, 1),
        *((solver, {"order": k}, k) for solver in ("ipndm", "ipndm_v", "deis") for k in (2, 3, 4)),
        ("dpmpp", {"order": 2}, 2),
        ("dpmpp", {"order": 3}, 2),  # as published, see its docstring
        *(("unipc", {"order": k, "variant": v}, k) for v in ("bh1", "bh2") for k in (2, 3)),
    ],
)
def test_one_step_from_exact_history_errs_at_the_stated_order(solver, settings, order):
    measured = local_order(solver, row=4, **settings)
    assert abs(measured - (order + 1)) < 0.25, f"{solver} {settings}: local order {measured:.2f}"


def corrected_defect(s, order, variant):
    """The defect of UniC's step to s[5], given exact x0 there and before."""
    rows = multistep.unipc(grid_of(s), order, variant)
    x0 = DATA(exact(s), s)
    predicted = rows.scale[4] * exact(s[4]) + rows.predict[4] @ x0[4:0:-1]
    return abs(predicted + rows.correct[5] @ x0[5:1:-1] - exact(s[5]))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_corrector_gains_one_order(order, variant):
    n = np.arange(9) - 5
    errors = [corrected_defect(np.exp(-h * (n + n**2 / 50)), order, variant) for h in (0.04, 0.02)]
    measured = np.log2(errors[0] / errors[1])
    assert abs(measured - (order + 2)) < 0.3, f"UniC-{order} {variant}: local order {measured:.2f}"


@pytest.mark.parametrize(
    "solver, settings, order",
    [
        ("ddim", {}, 1),
        ("ipndm", {"order": 2}, 2),
        ("ipndm", {"order": 4}, 2),  # the first step, of order 1, sets the order of the whole
        ("ipndm_v", {"order": 2}, 2),
        ("ipndm_v", {"order": 4}, 2),
        ("deis", {"order": 2}, 2),
        ("deis", {"order": 4}, 2),
        ("ghvb", {"order": 0.5}, 1),
        ("ghvb", {"order": 1.5}, 2),
        ("ghvb", {"order": 2.0}, 2),
        ("dpmpp", {"order": 2}, 2),
        ("dpmpp", {"order": 3}, 2),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"order": 2}, 2),
        ("unipc", {"order": 3}, 2),  # the last step, of order 1 and uncorrected
    ],
)
def test_global_error_falls_at_the_order_that_the_docs_state(solver, settings, order):
    y, counts, errors = np.full((1, 1, 1, 1), 2.0), (40, 80, 160), []
    for n in counts:
        rows = multistep.table(solver, grid_of(np.geomspace(3.0, 0.05, n + 1)), **settings)
        errors.append(abs(run(rows, DATA, y, chunk=40).item() - exact(0.05)))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order - 0.2 < slope < order + 0.6, f"{solver} {settings}: order {slope:.2f}, errors {errors}"


def test_ghvb_follows_its_published_recursion():
    """v <- (1-b) v + b eps from v = eps; slope (18+5b, -(24-8b), 6-b)/12 . v/b: order 2.4 is k = 3 with b = 0.4."""
    s, b, y = np.geomspace(4, 0.3, 6), 0.4, 1.7
    state, velocities = y, []
    for n in range(5):
        eps = (state - DATA(state, s[n])) / s[n]
        velocities.insert(0, eps if n == 0 else (1 - b) * velocities[0] + b * eps)
        k = min(n + 1, 3)
        mix = {1: [12 * b], 2: [12 + 6 * b, -12 + 6 * b], 3: [18 + 5 * b, -24 + 8 * b, 6 - b]}[k]
        state += (s[n + 1] - s[n]) * np.dot(mix, velocities[:k]) / (12 * b)
    rows = multistep.ghvb(grid_of(s), 2.4)
    np.testing.assert_allclose(run(rows, DATA, np.full((1, 1, 1, 1), y)).item(), state, rtol=1e-12)


@pytest.mark.parametrize("order", [0.5, 1.5, 2.4, 3.6])
def test_ghvb_is_exact_for_polynomial_eps_once_its_velocity_has_settled(order):
    grid, highest = grid_of(np.linspace(3.0, 1.0, 81)), int(np.ceil(order))
    rows = multistep.ghvb(grid, order)
    for degree in range(highest + 1):
        p = degree + 1
        error = defects(rows, grid, lambda s, p=p: s**p / p, lambda s, p=p: s**p / p - s * s ** (p - 1))[-1]
        assert (abs(error) < 1e-13) == (degree < highest), f"degree {degree}: {error}"


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ghvb_without_momentum_is_ipndm(order):
    with_b, without = multistep.ghvb(grid_of(UNEVEN), float(order)), multistep.ipndm(grid_of(UNEVEN), order)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), with_b, without)


def test_orders_one_are_all_ddim():
    y, expected = np.full((1, 1, 1, 1), 2.0), None
    for solver in ("ddim", "euler", "ipndm", "ipndm_v", "deis", "ghvb", "dpmpp", "plms1"):
        settings = {"order": 1} if solver in ("ipndm", "ipndm_v", "deis", "ghvb", "dpmpp") else {}
        result = run(multistep.table(solver, grid_of(UNEVEN), **settings), DATA, y)
        expected = result if expected is None else expected
        np.testing.assert_allclose(result, expected, rtol=1e-12)


# --- the loop --------------------------------------------------------------------------------------------------------

EVERY_SOLVER = ["ddim", "ipndm", "ipndm_v", "deis", "ghvb", "dpmpp", "unipc"]
Y = 8 * np.random.default_rng(0).standard_normal((2, 2, 3, 1))
PIXELS = Mixture(
    jnp.array([0.4, 0.6]), jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 3, 1))), jnp.array([0.3, 0.7])
)


@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_n_steps_call_the_network_n_times_at_the_scales_it_is_told(solver):
    told = UNEVEN * 1.01
    log = CallLog()
    rows = multistep.table(solver, grid_of(UNEVEN, told))
    jax.block_until_ready(run(rows, Counted(PIXELS, log), Y, chunk=4))  # the second chunk is padded with two steps
    jax.effects_barrier()
    np.testing.assert_allclose(log.noise_scales, told[:-1], rtol=1e-12)


@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_chunks_padding_and_unrolling_change_nothing(solver):
    rows = multistep.table(solver, grid_of(UNEVEN))
    unrolled, _ = base.unroll(multistep.step, PIXELS, multistep.init(jnp.asarray(Y)), jax.tree.map(jnp.asarray, rows))
    for chunk in (4, 6):
        np.testing.assert_allclose(run(rows, PIXELS, Y, chunk), unrolled.y, rtol=1e-13, atol=1e-13)


def test_all_solvers_and_step_counts_share_one_compiled_program():
    base._scan_chunk.clear_cache()
    for solver in EVERY_SOLVER:
        for n in (4, 9):
            run(multistep.table(solver, grid_of(np.geomspace(9, 0.1, n + 1))), PIXELS, Y)
    assert base._scan_chunk._cache_size() == 1


@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_the_last_noise_scale_may_be_exactly_zero(solver):
    rows = multistep.table(solver, grid_of(np.append(np.geomspace(9, 0.002, 8), 0.0)))
    assert all(np.isfinite(leaf).all() for leaf in rows)
    image = run(rows, PIXELS, Y)
    assert np.isfinite(image).all()
    if solver in ("ddim", "dpmpp", "unipc"):  # the last step is of order 1 and returns the last estimate itself
        np.testing.assert_array_equal(rows.scale[-1], 0.0)
        np.testing.assert_array_equal(rows.predict[-1], [1.0, 0, 0, 0])


def test_float32_states_lose_only_rounding():
    rows = multistep.unipc(grid_of(np.geomspace(300, 0.01, 11)))
    y = (30 * Y).astype(np.float32)
    single = run(rows, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PIXELS), y)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, run(rows, PIXELS, y.astype(np.float64)), atol=1e-4)


def test_a_denoiser_of_vp_images_gives_the_same_path_as_one_of_ve_images():
    """The same data seen through x = alpha y and eps at time t, with its own grid in t, against the denoiser of y."""
    sde = sde_lib.VPSDE()

    class ThroughVP(NamedTuple):
        mixture: Mixture

        def __call__(self, y, s):
            t = sde.time(s)
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            x = alpha * y
            eps = (x - alpha * self.mixture(x / alpha, sigma / alpha)) / sigma
            return sde_lib.x0_and_eps("eps", eps, x, alpha, sigma)[0]

    s = sde.noise_scale(np.linspace(1.0, 1e-3, 8))
    for solver in ("unipc", "ipndm"):
        rows = multistep.table(solver, grid_of(s))
        np.testing.assert_allclose(
            run(rows, ThroughVP(PIXELS), 20 * Y), run(rows, PIXELS, 20 * Y), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("solver", EVERY_SOLVER)
def test_table_entries_have_the_gradients_of_finite_differences(solver):
    s, s_model = UNEVEN, UNEVEN * np.array([1.0, 1.01, 0.98, 1.02, 1.0, 0.99, 1.0])
    rng = np.random.default_rng(2)
    rows = multistep.table(solver, TimeGrid(s, s_model))
    probe = [rng.standard_normal(np.shape(leaf)) for leaf in rows]

    def value(grid):
        return sum((weights * leaf).sum() for weights, leaf in zip(probe, multistep.table(solver, grid), strict=True))

    grids = TimeGrid(jnp.asarray(s), jnp.asarray(s_model))
    value_of_jax, gradient = jax.jit(jax.value_and_grad(value))(grids)
    np.testing.assert_allclose(value_of_jax, value(TimeGrid(s, s_model)), rtol=1e-12)
    for field in ("s", "s_model"):
        for i in range(len(s)):
            step = np.zeros(len(s))
            step[i] = 1e-6 * s[i]
            up, down = (
                value(TimeGrid(s, s_model)._replace(**{field: getattr(TimeGrid(s, s_model), field) + sign * step}))
                for sign in (1, -1)
            )
            np.testing.assert_allclose(getattr(gradient, field)[i], (up - down) / (2 * step[i]), rtol=1e-6, atol=1e-6)


def test_the_result_is_differentiable_through_the_loop():
    @jax.jit
    @jax.value_and_grad
    def error(s):
        rows = multistep.table("unipc", TimeGrid(s, s), order=2)
        state, _ = base.unroll(multistep.step, DATA, multistep.init(jnp.asarray(Y)), rows)
        return jnp.sum(state.y**2)

    s, step = jnp.asarray(UNEVEN[:4]), 1e-6
    (up, _), (down, _) = error(s.at[2].add(step)), error(s.at[2].add(-step))
    np.testing.assert_allclose(error(s)[1][2], (up - down) / (2 * step), rtol=1e-6)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_unknown_solver_names_the_choices():
    with pytest.raises(ValueError, match=r"sampling.method='unipcc'.*'unipc'"):
        multistep.table("unipcc", grid_of(UNEVEN))


@pytest.mark.parametrize(
    "solver, order", [("ipndm", 5), ("ipndm_v", 0), ("deis", 5), ("ghvb", 4.5), ("dpmpp", 4), ("unipc", 4)]
)
def test_an_order_that_a_solver_does_not_have_is_refused(solver, order):
    with pytest.raises(ValueError, match=r"has order .*config.sampling.order"):
        multistep.table(solver, grid_of(UNEVEN), order=order)


@pytest.mark.parametrize("solver", ["dpmpp", "unipc", "plms3", "deis", "ghvb", "ipndm_v"])
def test_fewer_steps_than_the_order_are_refused(solver):
    with pytest.raises(ValueError, match=r"needs at least \d steps, got 1; raise --steps or take a lower order"):
        multistep.table(solver, grid_of([80.0, 0.0]))


def test_an_unknown_unipc_variant_is_refused():
    with pytest.raises(ValueError, match="bh1 and bh2, not 'bh3'.*config.sampling.variant"):
        multistep.unipc(grid_of(UNEVEN), variant="bh3")


def test_every_published_name_is_known():
    for name in ("plms1", "plms4", "pndm1", "pndm4", "uni_pc", "dpm_solver++", "euler"):
        assert name in multistep.SOLVERS
    np.testing.assert_array_equal(
        multistep.table("pndm3", grid_of(UNEVEN)).predict, multistep.table("ipndm", grid_of(UNEVEN), order=3).predict
    )
