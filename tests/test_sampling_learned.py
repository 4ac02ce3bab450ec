import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder
from sampling_oracles import Gaussian

from sampling import base, general_solver, learned, multistep, single_step, time_grids
from sampling.base import TimeGrid
from sampling.learned import Schedule
from sde_lib import VESDE, VPSDE

PUBLISHED = golden_folder("ld3") / "published_cifar10_learned_steps.json"
GAUSSIAN = Gaussian(0.3, 0.5)
S = np.array([50.0, 8.0, 1.1, 0.2, 0.0])
TOLD = np.array([50.0, 7.0, 1.2, 0.18, 0.0])


def schedule(**changes):
    random = np.random.RandomState(0)
    whole = Schedule(
        "dpmpp",
        TimeGrid(S, TOLD),
        order=2,
        coefficients={
            "predict": random.randn(4, multistep.HISTORY),
            "on_states": np.tril(random.randn(4, 4)) / 10,
            "on_outputs": np.tril(random.randn(4, 4)) / 10,
        },
        sde=learned.describe_sde(VESDE()),
        checkpoint="ab12",
        teacher={"method": "heun", "steps": 40},
        guidance={"kind": "none"},
        training={"loss": 0.1},
    )
    return dataclasses.replace(whole, **changes)


def written(tmp_path, content):
    path = tmp_path / "schedule.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_a_file_gives_back_every_bit(tmp_path):
    before = schedule()
    after = learned.read(written(tmp_path, learned.to_json(before)))
    for field in dataclasses.fields(Schedule):
        a, b = (getattr(each, field.name) for each in (before, after))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert learned.to_json(after) == learned.to_json(before)
    assert after.method == "gs" and schedule(coefficients={}).method == "ld3"


@pytest.mark.parametrize("name", sorted(json.loads(PUBLISHED.read_text())))
def test_published_steps_follow_from_their_probabilities(name):
    stored = json.loads(PUBLISHED.read_text())[name]
    found = learned.read(f"{PUBLISHED}#{name}")
    np.testing.assert_array_equal(found.grid.s, stored["timesteps_sigma"])
    p = np.array(stored["probabilities"])
    made = learned.grid_of_probabilities(p, 80.0, 0.002)[: len(found.grid.s)]
    np.testing.assert_allclose(np.log(made), np.log(found.grid.s), atol=3e-6)
    assert found.solver == "" and found.grid.num_steps == int(name[1 : name.index("_")])


def test_published_probabilities_that_make_other_steps_are_refused(tmp_path):
    stored = json.loads(PUBLISHED.read_text())["N5_fixed_last_step"]
    stored["probabilities"][2] *= 1.02
    with pytest.raises(ValueError, match="its probabilities make"):
        learned.read(written(tmp_path, stored))


@pytest.mark.parametrize(
    "content",
    [
        list(time_grids.AYS_SIGMAS["sd15"]),
        {"t_steps": [14.6146, 4.39, 1.4467, 0.6114, 0.2255, 0.0292]},
    ],
)
def test_lists_of_noise_scales_are_read_as_grids_for_any_solver(tmp_path, content):
    found = learned.read(written(tmp_path, content))
    wanted = content if isinstance(content, list) else content["t_steps"]
    np.testing.assert_array_equal(found.grid.s, wanted)
    learned.check(found, "f.json", solver="unipc", order=2, num_steps=len(wanted) - 1, sde=VPSDE())


def test_steps_of_the_published_program_are_two_lists_of_times():
    times = np.array([1.0, 0.5, 0.1, 0.001, 1.0, 0.45, 0.11, 0.001])
    found = learned.from_times(times, VPSDE(), "f.pt")
    np.testing.assert_allclose(found.s, VPSDE().noise_scale(times[:4]), rtol=1e-12)
    np.testing.assert_allclose(found.s_model, VPSDE().noise_scale(times[4:]), rtol=1e-12)
    np.testing.assert_array_equal(learned.from_times([9, 2, 1, 8, 3, 1], VESDE(), "f.pt", True).s_model, [8, 3, 1])
    with pytest.raises(ValueError, match="f.pt: 3 times are no two lists"):
        learned.from_times([3, 2, 1], VESDE(), "f.pt")


def test_coefficients_are_added_to_those_of_the_solver():
    whole, plain = learned.rows(schedule(), VESDE()), multistep.table("dpmpp", TimeGrid(S, TOLD), np.ones(4), order=2)
    np.testing.assert_array_equal(whole.solver.predict, plain.predict + schedule().coefficients["predict"])
    np.testing.assert_array_equal(whole.on_states, schedule().coefficients["on_states"])
    np.testing.assert_array_equal(whole.on_outputs, schedule().coefficients["on_outputs"])
    only = learned.rows(schedule(coefficients={}), VESDE())
    np.testing.assert_array_equal(only.predict, plain.predict)
    heun = learned.rows(schedule(solver="heun", order=0, coefficients={}), VESDE())
    np.testing.assert_array_equal(heun.s_model_next, single_step.rows(TimeGrid(S, TOLD)).s_model_next)


def test_a_decoupled_network_is_fed_the_state_itself_under_vp():
    """x = alpha(s) y goes in where the network is told s_model, so the denoiser sees y alpha(s)/alpha(s_model)."""
    sde, grid = VPSDE(), TimeGrid(np.array([3.0, 1.0, 0.1]), np.array([3.0, 0.8, 0.1]))
    found = learned.rows(Schedule("ddim", grid), sde).input_scale
    np.testing.assert_allclose(found, [1.0, np.sqrt((1 + 0.8**2) / (1 + 1.0**2))], rtol=1e-9)
    assert learned.input_scale(TimeGrid(grid.s, grid.s), sde) is None


@pytest.mark.parametrize(
    "changes, calls",
    [({}, 4), ({"coefficients": {}}, 4), ({"coefficients": {}, "solver": "heun", "order": 0}, 7)],
)
def test_the_sampler_of_a_schedule_runs_its_rows(changes, calls):
    chosen = schedule(**changes)
    sampler = learned.create(chosen, GAUSSIAN, VESDE(), (2, 2, 1), 50.0)
    operands, state = sampler.begin(jax.random.split(jax.random.key(0), 2))
    y = state.y
    table = jax.tree.map(jnp.asarray, learned.rows(chosen, VESDE()))
    step = single_step.heun_step if calls == 7 else multistep.step if changes else general_solver.step
    wanted, _ = base.unroll(step, GAUSSIAN, state, table)
    found, _ = base.integrate(sampler.step, operands, state, sampler.rows)
    np.testing.assert_allclose(sampler.image(found), wanted.y, rtol=1e-5)
    assert sampler.nfe == calls and y.shape == (2, 2, 2, 1)


def test_a_general_schedule_of_zeros_is_its_solver():
    zeros = {key: np.zeros((4, 4)) for key in ("on_states", "on_outputs")}
    y = jnp.asarray(50 * np.random.RandomState(0).randn(2, 2, 2, 1))
    table = learned.rows(schedule(coefficients=zeros), VESDE())
    found, _ = base.integrate(general_solver.step, GAUSSIAN, general_solver.init(4, y), table)
    plain = learned.rows(schedule(coefficients={}), VESDE())
    wanted, _ = base.integrate(multistep.step, GAUSSIAN, multistep.init(y), plain)
    np.testing.assert_allclose(found.y, wanted.y, rtol=1e-13)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"num_steps": 5}, "was learned for 4 steps, --steps asks for 5"),
        ({"solver": "unipc"}, "was learned for dpmpp, --method asks for unipc"),
        ({"order": 3}, "was learned for order 2, config.sampling.order asks for 3"),
        ({"sde": VPSDE()}, r"was learned under VESDE\(.*sigma_max=50.0.*\), the model has VPSDE\("),
        ({"sde": VESDE(sigma_max=40.0)}, "sigma_max=50.0.*the model has.*sigma_max=40.0"),
    ],
)
def test_a_schedule_made_for_something_else_is_refused(asked, message):
    fits = {"solver": "dpm_solver++", "order": 2, "num_steps": 4, "sde": VESDE()}
    learned.check(schedule(), "f.json", **fits)
    with pytest.raises(ValueError, match=message):
        learned.check(schedule(), "f.json", **fits | asked)


def _changed(**changes):
    return json.loads(learned.to_json(schedule())) | changes


@pytest.mark.parametrize(
    "content, message",
    [
        ("not json", "is no JSON file of a learned schedule"),
        ('{"format": "learned-schedule", "s": [NaN]}', "NaN is no number"),
        ("[" * 100_000, "is no JSON file of a learned schedule"),
        ("3", "is no learned schedule: it holds int"),
        ({"format": "other"}, "its format is 'other'"),
        ({"a": {"probabilities": []}}, r"name one as .*#a"),
        (_changed(version=2), "has version 2 of the format, this program reads 1"),
        (_changed(solver="os.system"), "solver 'os.system' is unknown"),
        (_changed(solver=3), "solver is 3"),
        (_changed(order=True), "order is True"),
        (_changed(order=7), "dpmpp has order"),
        (_changed(steps=5), "says 5 steps and has 4"),
        (_changed(s=[50.0, 8.0, 9.0, 0.2, 0.0]), "must decrease"),
        (_changed(s=[50.0, "8", 1.1, 0.2, 0.0]), "s is no array of numbers"),
        (_changed(s=[50.0, [8.0], 1.1, 0.2, 0.0]), "s is no array of numbers"),
        (_changed(s=[50.0, True, 1.1, 0.2, 0.0]), "s is no array of numbers"),
        (_changed(s=[10**400, 8.0, 1.1, 0.2, 0.0]), "s is no array of numbers"),
        (_changed(s=[[50.0, 8.0, 1.1, 0.2, 0.0]]), r"s has shape \(1, 5\)"),
        (_changed(s=list(range(2000, 0, -1))), r"s has shape \(2000,\)"),
        (_changed(s_model=[50.0, 8.0]), "as many told to the network"),
        (_changed(s_model=[50.0, 8.0, -1.0, 0.2, 0.0]), "are positive"),
        (_changed(sde=[]), r"sde is \[\], not an object"),
        (_changed(coefficients={"weights": []}), r"coefficients \['weights'\] are unknown"),
        (_changed(coefficients={"predict": [[1.0]]}), r"predict has shape \(1, 1\), wanted is \(4, 4\)"),
        (_changed(coefficients={"on_states": [[0.0] * 4] * 4}), "on_states and on_outputs come together"),
        (_changed(solver="heun", order=0), "heun takes no coefficients"),
        ({"probabilities": [0.5, 0.5], "timesteps_sigma": [3.0, 2.0, 1.0, 0.5]}, "2 probabilities for 4 noise scales"),
        ({"probabilities": [0.5, -0.5], "timesteps_sigma": [3.0, 2.0]}, "both are positive"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"schedule.json.*{message}"):
        learned.read(written(tmp_path, content))


def test_a_file_that_is_missing_large_or_without_the_name_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.sampling.schedule=.*none.json.*learn one with --mode=train"):
        learned.read(str(tmp_path / "none.json"))
    with pytest.raises(ValueError, match="is larger than a learned schedule can be"):
        learned.read(written(tmp_path, " " * (learned.LARGEST + 1)))
    with pytest.raises(ValueError, match="holds no 'N4'"):
        learned.read(f"{PUBLISHED}#N4")
