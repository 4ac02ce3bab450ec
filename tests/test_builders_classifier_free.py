"""config.guidance.cfg_scale on Gaussian classes, where the guided flow is known: every sampler, counted truly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from builders.conditions import condition_settings
from builders.draw import image_keys, sample
from builders.model import Model
from builders.samplers import create_sampler
from configs import base as base_config
from models.denoiser import Denoiser
from modes.estimate import estimate
from sampling.time_grids import explicit
from sde_lib import VESDE

MEANS, STDS = jnp.array([0.3, 0.7, 0.5]), jnp.array([0.2, 0.1, 0.25])  # of two classes and of none
NULL = 2
ASKED = []  # images in each network call


def network(params, x, sigma, classes):
    """E[x0 | y] of N(mean, std^2) of the class."""
    jax.debug.callback(lambda: ASKED.append(len(x)))
    mean, variance = (value[classes][:, None, None, None] for value in (MEANS, STDS**2))
    return params * mean + variance / (variance + sigma[:, None, None, None] ** 2) * (x - mean)


def model_of(guidance=(), **sampling) -> Model:
    config = base_config.get_config()
    config.data.update(image_size=4, num_classes=3, null_class=NULL)
    config.model.name = "own"
    config.sampling.update(num_steps=10, microbatch=2, method="ddim")
    config.sampling.update(sampling)
    config.guidance.update(dict(guidance))
    return Model(Denoiser(jnp.float32(1.0), network, VESDE(0.01, 50.0), "x0", "sigma"), config)


def flow(y, s_from, s_to, classes, scale):
    """dy/ds = sum_i w_i s (y - m_i)/(v_i + s^2) over the class and none of them, in 1000 midpoint steps of log s."""
    weights = np.array([scale, 1 - scale])
    means, variances = (np.stack([np.asarray(v)[classes], np.full(len(y), v[NULL])]) for v in (MEANS, STDS**2))
    means, variances = means[:, :, None, None, None], variances[:, :, None, None, None]

    def slope(y, s):
        return np.tensordot(weights, s**2 * (y - means) / (variances + s**2), 1)

    logs = np.linspace(np.log(s_from), np.log(s_to), 1001)
    for a, b in zip(logs[:-1], logs[1:], strict=True):
        half = y + 0.5 * (b - a) * slope(y, np.exp(a))
        y = y + (b - a) * slope(half, np.exp(0.5 * (a + b)))
    return y


def start(indices) -> np.ndarray:
    noise = [np.asarray(jax.random.normal(key, (4, 4, 3), jnp.float32)) for key in image_keys(42, indices)]
    return 50.0 * np.stack(noise).astype(np.float64)


def calls_of(run) -> float:
    """Network calls an image that a run of 4 images in groups of two on two devices made."""
    ASKED.clear()
    run()
    jax.effects_barrier()
    return sum(ASKED) / 4


@pytest.mark.parametrize("method", ["heun", "unipc", "stsp2"])
def test_the_guided_flow_of_gaussian_classes_is_followed_and_its_calls_are_two_an_evaluation(method):
    model = model_of({"cfg_scale": 2.5}, method=method, num_steps=60)
    y = flow(start(range(4)), 50.0, 0.01, np.array([0, 1, 0, 1]), 2.5)
    found = {}
    assert calls_of(lambda: found.update(now=sample(model, {}, range(4)))) == found["now"].nfe
    assert found["now"].nfe == {"heun": 238, "unipc": 120, "stsp2": 120}[method]
    assert np.abs(found["now"].images - y).max() < {"heun": 0.01, "unipc": 0.006, "stsp2": 0.02}[method]
    plain = sample(model_of(method=method, num_steps=60), {}, range(4)).images
    assert np.abs(plain - y).mean() > 0.1, "guidance matters here"


def test_an_interval_guides_there_alone_and_costs_one_call_elsewhere():
    model = model_of({"cfg_scale": 3.0, "cfg_interval": (0.1, 5.0)}, method="heun", num_steps=60)
    classes, y = np.array([0, 1, 0, 1]), start(range(4))
    for high, low, scale in ((50.0, 5.0, 1.0), (5.0, 0.1, 3.0), (0.1, 0.01, 1.0)):
        y = flow(y, high, low, classes, scale)
    found = {}
    assert calls_of(lambda: found.update(now=sample(model, {}, range(4)))) == found["now"].nfe
    assert 119 < found["now"].nfe < 238
    assert np.abs(found["now"].images - y).max() < 0.05


@pytest.mark.parametrize("method", ["pds", "ddim", "gs"])
def test_calls_within_an_interval_are_counted_before_anything_runs(method, tmp_path):
    grid = [50.0, 20.0, 5.0, 1.0, 0.3, 0.0]
    (tmp_path / "list.json").write_text(str(grid))
    own = {
        "pds": {"num_steps": 20, "freq_mask_path": "natural"},
        "ddim": {"grid": ",".join(map(str, grid)), "num_steps": 0},
        "gs": {"schedule": str(tmp_path / "list.json"), "num_steps": 0},
    }[method]
    model = model_of({"cfg_scale": 3.0, "cfg_interval": (0.5, 5.0)}, method=method, **own)
    sampler = create_sampler(model, model.config)
    assert calls_of(lambda: sample(model, {}, range(4))) == sampler.nfe
    if method == "pds":
        inside = int((np.asarray(sampler.rows.t) > 0).sum())
        assert inside < sampler.nfe < 2 * inside
    else:
        assert sampler.nfe == explicit(grid).num_steps + 2  # 5 and 1 lie inside


@pytest.mark.slow
def test_preconditioned_sampling_draws_the_mean_that_guidance_asks_for():
    model = model_of({"cfg_scale": 2.0}, method="pds", num_steps=300, freq_mask_path="natural", labels="1")
    same = jnp.array([0.2, 0.2, 0.2])

    def equal(params, x, sigma, classes):
        mean, variance = MEANS[classes][:, None, None, None], same[0] ** 2
        return mean + variance / (variance + sigma[:, None, None, None] ** 2) * (x - mean)

    denoiser = Denoiser(jnp.float32(1.0), equal, VESDE(0.01, 50.0), "x0", "sigma")
    drawn = sample(Model(denoiser, model.config), {}, range(16))
    # Equal variances: the guided density is N(m_null + w (m - m_null), v).
    assert abs(drawn.images.mean() - 0.9) < 0.03
    assert drawn.nfe == 2 * 600


@pytest.mark.slow
def test_the_adaptive_solver_counts_two_calls_an_evaluation():
    ode = model_of({"cfg_scale": 2.0}, method="ode")
    drawn = sample(ode, {}, range(2))
    assert set((drawn.calls % 2).tolist()) == {0}
    with pytest.raises(ValueError, match="cfg_interval.*takes as many steps as it needs"):
        sample(model_of({"cfg_scale": 2.0, "cfg_interval": (0.1, 1.0)}, method="ode"), {}, [0])


def test_labels_leave_the_null_class_out_unless_it_is_asked_for():
    model = model_of(num_steps=30)
    means = sample(model, {}, range(4)).images.mean((1, 2, 3))
    np.testing.assert_allclose(means, [0.3, 0.7, 0.3, 0.7], atol=0.1)
    null = sample(model, {"labels": str(NULL)}, range(2)).images
    model.config.guidance.cfg_scale = 0.0
    unconditional = sample(model, {"labels": "1"}, range(2))
    np.testing.assert_allclose(unconditional.images, null, atol=1e-6)
    assert unconditional.nfe == 30


def test_what_is_said_before_a_run_reckons_with_two_calls():
    model = model_of({"cfg_scale": 2.0}, num_steps=100)
    assert "cheaper" in estimate(model, create_sampler(model, model.config), 4)
    assert condition_settings(model.config)["guidance"]["cfg_scale"] == 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.null_class": -1}, "no class that means none"),
        ({"data.num_classes": 0}, "no class that means none"),
        ({"guidance.kind": "autoguidance"}, "choose one of them"),
        ({"guidance.cfg_interval": (3.0, 1.0)}, "low < high"),
        ({"data.null_class": 4}, "classes 0 to 2, and 3 for none"),
        ({"data.null_class": 3, "model.name": "adm"}, "null_class=3.*classes 0 to 2"),
        ({"student.method": "distilled", "student.num_steps": 10, "sampling.method": "distilled"}, "takes no guidance"),
    ],
)
def test_guidance_that_has_no_meaning_is_refused(changes, message):
    model = model_of({"cfg_scale": 2.0})
    model.config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        create_sampler(model, model.config)
