"""Time grids: published grids and lists, what each grid is even in, brute force against dynamic programming, errors."""

import itertools
import json
import pathlib

import numpy as np
import pytest
from sampling_oracles import CLOCKS, Gaussian

import sde_lib
from sampling import time_grids

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "ld3"


def golden(name):
    return dict(np.load(GOLDENS / f"{name}.npz"))


# --- published -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", CLOCKS)
def test_clocks_agree_with_the_published_schedules(schedule):
    clock, table = CLOCKS[schedule], golden("schedules")
    t, lam, query = (table[f"{schedule}/{key}"] for key in ("t", "lambda", "lam_query"))
    np.testing.assert_allclose(clock.noise_scale(t), np.exp(-lam), rtol=1e-10)
    np.testing.assert_allclose(np.log(clock.alpha(t)), table[f"{schedule}/log_alpha"], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(clock.time(np.exp(-query)), table[f"{schedule}/inverse_lambda"], rtol=1e-9)


@pytest.mark.parametrize("schedule", CLOCKS)
def test_every_grid_of_the_ld3_program_is_reproduced(schedule):
    clock, grids, checked = CLOCKS[schedule], golden("grids"), 0
    names = {
        "time_uniform": "time_uniform",
        "time_quadratic": "time_quadratic",
        "poly_3": "time_cubic",
        "edm": "edm_time",
    }
    for key, t in grids.items():
        owner, name, steps = key.split("/")
        if owner != schedule or name == "dmn_ref":
            continue
        ends = clock.noise_scale(t[0]), clock.noise_scale(t[-1])
        n = int(steps[1:])
        if name == "logSNR":
            ours = time_grids.logsnr(n, *ends)
        else:
            ours = time_grids.CLOCK_GRIDS[names[name]](n, *ends, clock)
        np.testing.assert_allclose(
            ours, clock.noise_scale(t), rtol=1e-9 if "discrete" in schedule else 1e-10, err_msg=key
        )
        checked += 1
    assert checked >= 6


def latent_error(s):  # sigma^2/alpha of a VP process
    return s**2 / np.sqrt(1 + s**2)


@pytest.mark.parametrize("schedule, error", [("ve_edm", lambda s: s), ("vp_discrete_ldm", latent_error)])
def test_dmn_finds_the_published_five_steps_and_a_bound_no_worse_at_ten(schedule, error):
    clock, grids = CLOCKS[schedule], golden("grids")
    ends = clock.noise_scale(grids[f"{schedule}/logSNR/N5"])[[0, -1]]
    published = {n: clock.noise_scale(grids[f"{schedule}/dmn_ref/N{n}"]) for n in (5, 10)}
    np.testing.assert_allclose(time_grids.dmn(5, *ends, error), published[5], rtol=2e-3)
    ours = time_grids.dmn(10, *ends, error)
    assert time_grids.solver_error_bound(ours, error) < time_grids.solver_error_bound(published[10], error)
    assert time_grids.solver_error_bound(ours, error) < time_grids.solver_error_bound(
        time_grids.logsnr(10, *ends), error
    )


def test_respaced_strings_keep_the_levels_of_the_published_program():
    published = np.load(GOLDENS.parent / "grids" / "respaced_adm.npz")
    ladder = time_grids.ddpm_noise_scales(np.linspace(1e-4, 0.02, 1000))
    for spec in ("10", "20"):
        indices = time_grids.respaced_indices(spec, 1000)
        np.testing.assert_array_equal(indices, published[f"{spec}/timestep_map"])
        s = time_grids.respaced(spec, ladder)
        np.testing.assert_allclose(s[:-1], published[f"{spec}/sigma"][::-1], rtol=1e-10)
        np.testing.assert_allclose(s[1:], published[f"{spec}/sigma_prev"][::-1], rtol=1e-10)


def test_respaced_strings_may_stride_or_divide_the_ladder_unevenly():
    assert time_grids.respaced_indices("ddim20", 1000).tolist() == list(range(0, 1000, 50))
    # 14 levels in three sections of 5, 5 and 4, the first as long as the rest allows; 4 of 5 is a stride of 4/3.
    assert time_grids.respaced_indices("4,1,3", 14).tolist() == [0, 1, 3, 4, 5, 10, 12, 13]


@pytest.mark.parametrize(
    "kind, name", [("sd15", "StableDiffusion"), ("sdxl", "StableDiffusionXL"), ("svd", "StableDiffusionVideo")]
)
def test_ays_returns_its_published_list_over_its_own_range(kind, name):
    published = json.loads((GOLDENS.parent / "grids" / "published_schedules.json").read_text())["ays"][f"{name}Sigmas"]
    ours = time_grids.with_zero(time_grids.ays(9, published[0], published[-2], kind))
    np.testing.assert_allclose(ours, published, rtol=1e-12)
    stretched = np.log(time_grids.ays(9, 80.0, 0.002, kind))
    np.testing.assert_allclose(
        np.diff(stretched) / np.diff(np.log(published[:-1])), np.ptp(stretched) / np.log(published[0] / published[-2])
    )


# --- what each grid is even in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, coordinate",
    [
        ("edm", lambda s, sde: s ** (1 / 7)),
        ("logsnr", lambda s, sde: np.log(s)),
        ("geometric", lambda s, sde: np.log(s)),
        ("time_uniform", lambda s, sde: sde.time(s)),
        ("time_quadratic", lambda s, sde: np.sqrt(sde.time(s) - sde.time(0.02))),
        ("time_cubic", lambda s, sde: np.cbrt(sde.time(s) - sde.time(0.02))),
        ("edm_time", lambda s, sde: sde.time(s) ** (1 / 7)),
    ],
)
@pytest.mark.parametrize("sde", [sde_lib.VESDE(), sde_lib.VPSDE(), sde_lib.SubVPSDE(), sde_lib.CosineVPSDE()])
def test_each_grid_is_even_in_its_coordinate_and_ends_where_told(name, coordinate, sde):
    grid = time_grids.make(name, 6, 40.0, 0.02, sde, to_zero=False)
    np.testing.assert_allclose(grid.s[[0, -1]], [40.0, 0.02], rtol=1e-9)
    inner = coordinate(grid.s[:-1], sde)
    np.testing.assert_allclose(np.diff(inner), np.diff(inner).mean(), rtol=1e-5)
    np.testing.assert_array_equal(grid.s, grid.s_model)


@pytest.mark.parametrize("name", [*time_grids.NOISE_GRIDS, *time_grids.CLOCK_GRIDS])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_grid_to_zero_makes_exactly_the_network_calls_asked_for(name, steps):
    grid = time_grids.make(name, steps, 40.0, 0.02, sde_lib.VPSDE())
    assert grid.num_steps == steps and grid.s[-1] == 0.0
    np.testing.assert_allclose(grid.s[0], 40.0, rtol=1e-12)
    if steps > 1:
        np.testing.assert_allclose(grid.s[-2], 0.02, rtol=1e-9)


# --- GITS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [1.15, 3.0])
def test_the_cheapest_path_beats_every_other_by_brute_force(growth):
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 4, 7):
        for _ in range(10):
            costs = np.where(np.triu(np.ones((8, 8)), 1) > 0, rng.uniform(size=(8, 8)), np.inf)
            best = min(
                ([0, *inner, 7] for inner in itertools.combinations(range(1, 7), n - 1)),
                key=lambda path: sum(growth**k * costs[i, j] for k, (i, j) in enumerate(itertools.pairwise(path))),  # noqa: B023
            )
            assert time_grids.cheapest_path(costs, n, growth).tolist() == best


def test_jump_costs_are_the_errors_of_euler_steps_along_the_teacher():
    data, s = Gaussian(0.0, 1.0), np.array([3.0, 2.0, 0.5])
    start = np.array([[[2.0]], [[-1.0]]])
    states = np.stack([data.flow(start, 3.0, scale) for scale in s])
    costs = time_grids.euler_jump_costs(
        states, np.stack([data(y, scale) for y, scale in zip(states, s, strict=True)]), s
    )
    # From s to s', Euler multiplies y by 1 + (s' - s) s/(1 + s^2); the exact flow by sqrt((1 + s'^2)/(1 + s^2)).
    expected = np.mean([2.0, 1.0]) * abs(1 - 2.5 * 3 / 10 - np.sqrt(1.25 / 10))
    np.testing.assert_allclose(costs[0, 2], expected, rtol=1e-12)
    assert np.isinf(costs[2, 0]) and np.isinf(costs[1, 1])


def test_gits_picks_a_better_euler_grid_than_even_log_s():
    data, fine = Gaussian(0.3, 0.5), np.geomspace(80, 0.002, 61)
    start = 80 * np.random.default_rng(0).standard_normal((16, 4))
    states = np.stack([data.flow(start, 80.0, s) for s in fine])
    x0 = np.stack([data(y, s) for y, s in zip(states, fine, strict=True)])

    def euler_error(s):
        y = start
        for a, b in itertools.pairwise(s):
            y = y + (b - a) * (y - data(y, a)) / a
        return np.abs(y - states[-1]).mean()

    assert euler_error(time_grids.gits(states, x0, fine, 6)) < 0.7 * euler_error(time_grids.logsnr(6, 80.0, 0.002))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: time_grids.make("karras", 5, 80.0, 0.002, sde_lib.VPSDE()),
            "grid='karras' is unknown; choose one of.*'edm'",
        ),
        (
            lambda: time_grids.make("edm", 0, 80.0, 0.002, sde_lib.VPSDE()),
            "--steps=0: a sampler takes at least one step",
        ),
        (
            lambda: time_grids.make("edm", 5, 0.002, 80.0, sde_lib.VPSDE()),
            "s_max down to s_min > 0, got 0.002 and 80.0",
        ),
        (lambda: time_grids.respaced_indices("ddim999", 1000), "no integer stride keeps 999 of 1000 levels; use 999"),
        (lambda: time_grids.respaced_indices("4;5", 1000), "'4;5' is no respacing; write"),
        (lambda: time_grids.respaced_indices("6,6", 10), "section 0 has 5 levels, 6 were asked for"),
        (lambda: time_grids.cheapest_path(np.zeros((4, 4)), 4), "4 points has no path of 4 steps; lower --steps"),
        (lambda: time_grids.explicit([1.0]), "two or more noise scales"),
        (lambda: time_grids.explicit([2.0, 1.0], [2.0, 1.5, 1.0]), "as many told to the network"),
        (lambda: time_grids.explicit([2.0, 0.0, 0.0]), "only the last may be 0"),
        (lambda: time_grids.explicit([2.0, np.nan]), "only the last may be 0"),
        (lambda: time_grids.explicit([0.1, 0.5, 1.0], source="grid.json"), "grid.json: noise scales .* must decrease"),
    ],
)
def test_bad_grids_say_what_is_wrong_and_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
