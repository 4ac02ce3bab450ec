"""Every solver and grid by its key in the config, on Gaussian data whose exact flow is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders import adaptive, solvers
from builders.draw import image_keys, sample
from builders.grids import create_grid, prior_scale
from builders.guidance import METHODS as GUIDED
from builders.model import Model
from builders.samplers import create_sampler
from configs import base as base_config
from configs import methods
from models.denoiser import Denoiser
from sampling import time_grids
from sampling.sde_solvers import RestartInterval
from sde_lib import VESDE, VPSDE, SubVPSDE

MEAN, STD = 0.4, 0.2


def network(params, x, sigma):
    """E[x0 | y] of data N(MEAN, STD^2)."""
    s = sigma[:, None, None, None]
    return MEAN + params * STD**2 / (STD**2 + s**2) * (x - MEAN)


def model_of(sde=VESDE(0.01, 50.0), **sampling) -> Model:  # noqa: B008
    config = base_config.get_config()
    config.data.image_size = 4
    config.sampling.update(num_steps=12, microbatch=4, method="heun")
    config.sampling.update(sampling)
    return Model(Denoiser(jnp.float32(1.0), network, sde, "x0", "sigma"), config)


def noise(count: int) -> np.ndarray:
    return np.stack(
        [np.asarray(jax.random.normal(key, (4, 4, 3), jnp.float32)) for key in image_keys(42, range(count))]
    )


def exact(s0: float, y: np.ndarray) -> np.ndarray:
    return MEAN + (y - MEAN) * STD / np.sqrt(STD**2 + s0**2)


DETERMINISTIC = sorted(set(solvers.METHODS) - set(solvers.STOCHASTIC))


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_every_deterministic_solver_comes_close_to_the_exact_flow(method):
    found = sample(model_of(), {"method": method, "num_steps": 40}, range(4))
    assert found.nfe == (79 if method in ("heun", "dpmpp_2s") else 40)
    error = np.abs(found.images - exact(50.0, 50.0 * noise(4))).max()
    assert error < (0.15 if method in ("ddim", "euler", "plms1", "pndm1") else 0.04), error


# Restart: two descents of three steps, two calls each, on top of Heun's 79.
@pytest.mark.parametrize(("method", "nfe"), [("edm", 79), ("restart", 91), ("sa", 40)])
def test_stochastic_solvers_hold_the_mean_and_the_variance(method, nfe):
    found = sample(model_of(), {"method": method, "num_steps": 40, "microbatch": 64}, range(64))
    assert found.nfe == nfe
    assert abs(found.images.mean() - MEAN) < 0.02
    assert abs(found.images.std() / STD - 1) < 0.06


def test_the_keys_of_the_stochastic_solvers_act():
    plain = sample(model_of(), {"method": "heun"}, range(2)).images
    np.testing.assert_allclose(sample(model_of(), {"method": "edm", "churn": {"amount": 0.0}}, range(2)).images, plain)
    assert np.abs(sample(model_of(), {"method": "edm"}, range(2)).images - plain).max() > 0.01
    flow = sample(model_of(), {"method": "sa", "tau": 0.0}, range(2)).images
    for change in ({"tau": 1.0}, {"tau": 0.0, "order": 1}, {"tau": 0.0, "corrector_order": 1}):
        assert np.abs(sample(model_of(), {"method": "sa"} | change, range(2)).images - flow).max() > 1e-4
    once = sample(model_of(), {"method": "restart", "restart": (0.1, 1.0, 2, 1)}, range(2))
    twice = sample(model_of(), {"method": "restart", "restart": (0.1, 1.0, 2, 2)}, range(2))
    assert twice.nfe - once.nfe == 4


def test_variant_order_and_threshold_act_and_are_refused_where_they_do_not():
    model = model_of(method="unipc")
    both = [sample(model, {"variant": variant}, range(2)).images for variant in ("bh1", "bh2", "")]
    assert np.abs(both[0] - both[1]).max() > 1e-4
    np.testing.assert_array_equal(both[1], both[2])
    wide, clipped = (sample(model_of(threshold=kind), {}, range(4)).images for kind in ("none", "static"))
    assert wide.min() < -0.01 and clipped.min() > -1e-6
    for method, key, value in (("ddim", "order", 2), ("plms2", "order", 3), ("deis", "variant", "bh1")):
        with pytest.raises(ValueError, match=f"--method={method} has one {key} only; leave config.sampling.{key}"):
            sample(model, {"method": method, key: value})
    with pytest.raises(ValueError, match=r"config.sampling.restart=\(0.1, 1.0\) must be s_min"):
        sample(model, {"method": "restart", "restart": (0.1, 1.0)})
    with pytest.raises(ValueError, match="config.sampling.threshold='soft' is unknown"):
        sample(model, {"threshold": "soft"})


def test_thresholds_lie_at_the_ends_of_the_models_own_range():
    model = model_of(threshold="dynamic", threshold_quantile=0.9)
    for centered, own_range, ends in ((False, (), (0, 1)), (True, (), (-1, 1)), (True, (-0.5, 1.5), (-0.5, 1.5))):
        model.config.data.update(centered=centered, range=own_range)
        found = solvers.create_thresholded(model, model.config)
        assert (found.low, found.high, found.quantile) == (*ends, 0.9)


def test_intervals_of_restart_are_read_in_fours():
    found = solvers._restart_intervals((0.1, 1.0, 3, 2, 2.0, 9.0, 5, 1))
    assert found == [RestartInterval(0.1, 1.0, 3, 2), RestartInterval(2.0, 9.0, 5, 1)]
    model = model_of(method="restart", restart=(0.1, 1.0, 3, 2, 2.0, 9.0, 5, 1))
    assert create_sampler(model, model.config).nfe == 2 * (12 + 3 * 2 + 5) - 1


def grid_of(spec: str, sde=VESDE(0.01, 50.0), num_steps=0, start_sigma=0.0, method="ddim"):  # noqa: B008
    model = model_of(sde, grid=spec, num_steps=num_steps, start_sigma=start_sigma, speed_up=100.0, method=method)
    return create_grid(model, model.config, model.denoiser)


def test_grids_by_name_by_levels_and_by_noise_scales():
    np.testing.assert_allclose(grid_of("")[0], time_grids.make("edm", 10, 50.0, 0.01 * 5000**1e-5, None).s, rtol=1e-9)
    np.testing.assert_array_equal(grid_of("14.6,2.5,0.4,0.0").s, [14.6, 2.5, 0.4, 0.0])
    levels = grid_of("5").s  # both ends of the ladder, then 0
    np.testing.assert_allclose(levels[[0, -2, -1]], [50.0, 0.01, 0.0])
    assert len(levels) == 6
    np.testing.assert_allclose(grid_of("20", VPSDE()).s[[0, -2]], [157.4073, 0.0100005], rtol=1e-5)


def test_solvers_of_polynomials_in_log_s_step_evenly_in_it_unless_told_otherwise():
    s_min = 0.01 * 5000**1e-5
    for method in ("unipc", "dpmpp"):
        s = grid_of("", num_steps=8, method=method).s
        np.testing.assert_allclose(s[:-1], np.geomspace(50.0, s_min, 8), rtol=1e-9)
        np.testing.assert_array_equal(grid_of("edm", num_steps=8, method=method).s, grid_of("", num_steps=8).s)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        ("5", {"num_steps": 7}, "has 5 steps, --steps asks for 7"),
        ("5", {"start_sigma": 1.0}, "says itself where it begins; leave --start_sigma out"),
        ("5", {"sde": SubVPSDE()}, "SubVPSDE has no training levels"),
        ("2.5,1e.4,0.0", {}, r"'1e.4' is no noise scale"),
        ("0.4,2.5,0.0", {}, "must decrease"),
        ("karras", {}, "grid='karras' is unknown"),
        ("", {"start_sigma": 60.0}, "--start_sigma=60 must lie above 0.01 and not above 50"),
    ],
)
def test_a_grid_without_a_meaning_is_refused(spec, changes, message):
    with pytest.raises(ValueError, match=message):
        grid_of(spec, **changes)


def test_gits_searches_ddim_trajectories_of_images_of_its_own():
    teacher = grid_of("edm", num_steps=60).s
    keys = jax.random.split(jax.random.fold_in(jax.random.key(42), 2**32 - 1), 4)
    y = teacher[0] * np.stack([np.asarray(jax.random.normal(key, (4, 4, 3), jnp.float32)) for key in keys])
    states, estimates = [y], []
    for s, s_next in zip(teacher[:-1], teacher[1:], strict=True):
        estimates.append(MEAN + STD**2 / (STD**2 + s**2) * (states[-1] - MEAN))
        states.append(estimates[-1] + s_next / s * (states[-1] - estimates[-1]))
    expected = time_grids.gits(np.stack(states), np.stack(estimates), teacher, 6)
    model = model_of(grid="gits", num_steps=6, gits_images=4)
    np.testing.assert_array_equal(create_grid(model, model.config, model.denoiser).s, expected)


def test_gits_ends_at_zero_with_as_many_calls_as_asked_and_beats_an_even_grid():
    model = model_of(gits_images=4)
    grid = grid_of("gits", num_steps=6)
    assert grid.num_steps == 6 and grid.s[0] == 50.0 and grid.s[-1] == 0.0
    errors = [
        np.abs(sample(model, {"method": "ddim", "num_steps": 6, "grid": spec}, range(4)).images
               - exact(50.0, 50.0 * noise(4))).mean()
        for spec in ("gits", "logsnr")
    ]  # fmt: skip
    assert errors[0] < 0.7 * errors[1], errors


@pytest.mark.parametrize("sde", [VESDE(0.01, 50.0), VPSDE(), SubVPSDE()])
def test_the_state_begins_with_the_spread_of_the_prior_wherever_the_grid_does(sde):
    top = float(sde.noise_scale(np.float64(1.0)))
    whole = prior_scale(sde, time_grids.explicit([top, 0.0]))
    np.testing.assert_allclose(whole, sde.prior_sigma / sde.alpha(np.float64(1.0)))
    np.testing.assert_allclose(prior_scale(sde, time_grids.explicit([top / 2, 0.0])), whole / 2)


def test_an_unknown_method_lists_the_new_names_too():
    with pytest.raises(ValueError, match=r"'edm'.*'restart', .*'sa'"):
        model = model_of(method="hoin")
        create_sampler(model, model.config)


def test_every_solver_has_a_config_of_its_own():
    assert set(methods.SOLVERS) == {*solvers.METHODS, *GUIDED, adaptive.METHOD}
    for name in methods.SOLVERS:
        assert methods.apply(base_config.get_config(), name).sampling.method == name
