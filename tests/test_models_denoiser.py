"""From a network to x0: the conversions of the published LD3 program, for every thing a network may predict."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import Mixture

import sde_lib
from models.denoiser import TOLD, Denoiser, level_table
from models.denoiser import told as convention

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "ld3"
PROCESSES = {"vp_linear": sde_lib.VPSDE(), "ve_edm": sde_lib.EDMSDE()}


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("schedule", PROCESSES)
def test_every_prediction_gives_the_published_estimate(schedule, predicts):
    sde = PROCESSES[schedule]
    with np.load(GOLDENS / "model.npz") as file:
        mixture = Mixture(*(jnp.asarray(file[key]) for key in ("weights", "means", "stds")))

    def network(params, x, s):
        alpha, sigma = (value(sde.time(s))[:, None, None, None] for value in (sde.alpha, sde.sigma))
        x0 = mixture(x / alpha, s[0])
        eps = (x - alpha * x0) / sigma
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma}[predicts]

    denoiser = Denoiser((), network, sde, predicts, told="sigma")
    with np.load(GOLDENS / "denoiser_checks.npz") as golden:
        for i in (0, 2, 4):
            x, t, x0 = (golden[f"{schedule}/{name}_{i}"] for name in ("x", "t", "x0"))
            # The program's VE time is the noise scale itself.
            s, alpha = (t, 1.0) if schedule == "ve_edm" else (sde.noise_scale(t), sde.alpha(t))
            np.testing.assert_allclose(denoiser(jnp.asarray(x / alpha), jnp.asarray(s)), x0, atol=1e-10)


@pytest.mark.parametrize("num_scales", [1000, 2000])
def test_float32_times_of_a_discrete_chain_meet_every_level(num_scales):
    sde = sde_lib.VPSDE(num_scales=num_scales)
    denoiser = Denoiser((), lambda params, x, labels: x, sde, "eps", told="fractional_level")
    chain = np.sqrt(1 - np.cumprod(1 - sde.discrete_betas()))
    levels = np.arange(num_scales, dtype=np.float32)
    for t in (levels / np.float32(num_scales - 1), np.linspace(0, 1, num_scales, dtype=np.float32)):
        np.testing.assert_allclose(denoiser.std(jnp.asarray(t)), chain, rtol=1e-6)
    # Half way to the next level the lower one still holds, as published.
    np.testing.assert_allclose(denoiser.std(jnp.asarray((levels[:-1] + 0.5) / (num_scales - 1))), chain[:-1], rtol=1e-6)


def test_signal_and_noise_of_a_discrete_chain_are_its_own():
    sde = sde_lib.VPSDE(num_scales=10, beta_max=5)
    t, chain = jnp.linspace(0, 1, 10), np.cumprod(1 - np.linspace(0.01, 0.5, 10))
    for told, signal in (("fractional_level", np.sqrt(chain)), ("999t", sde.alpha(t))):
        denoiser = Denoiser((), pytest.fail, sde, "eps", told)
        np.testing.assert_allclose(denoiser.signal(t), signal, rtol=1e-10)
        np.testing.assert_allclose(denoiser.signal(t) ** 2 + denoiser.std(t) ** 2, 1, rtol=1e-10)


def test_the_network_is_told_the_noise_level_in_the_words_it_learned():
    sde, chain, t = sde_lib.VPSDE(num_scales=9), sde_lib.DiscreteVPSDE(num_scales=9, beta_max=5.0), np.array([0.3, 1.0])
    s = np.sqrt(np.expm1(0.1 * t + 0.5 * 19.9 * t**2))
    told = {
        "sigma": s,
        "log_sigma": np.log(s),
        "t": t,
        "999t": 999 * t,
        "level": [6, 0],  # counted from the largest noise down, the nearest
        "fractional_level": 8 * t,
        "index": 8 * t,
    }
    assert set(told) == set(TOLD)
    for name, expected in told.items():
        found = Denoiser((), pytest.fail, chain if name == "index" else sde, "eps", name).labels(jnp.asarray(t))
        np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=name)
    with pytest.raises(ValueError, match="told='index' is unknown"):
        Denoiser((), pytest.fail, sde, "eps", "index").labels(jnp.asarray(t))


def test_conventions_follow_from_the_process_and_from_continuous_training():
    ve, vp, sub_vp = sde_lib.VESDE(), sde_lib.VPSDE(), sde_lib.SubVPSDE()
    assert [[convention(sde, continuous) for continuous in (True, False)] for sde in (ve, vp, sub_vp)] == [
        ["sigma", "level"],
        ["999t", "fractional_level"],
        ["999t", "999t"],
    ]
    assert convention(sde_lib.EDMSDE(), True) == "sigma" and convention(sde_lib.DiscreteVPSDE(), False) == "index"
    np.testing.assert_allclose(level_table(sde_lib.VESDE(0.1, 10.0, num_scales=3)), [10, 1, 0.1], rtol=1e-12)
    with pytest.raises(ValueError, match="SubVPSDE has no table of training levels"):
        level_table(sub_vp)


def test_a_learned_variance_is_left_out_and_the_later_condition_holds():
    def network(params, x, labels, classes):
        return jnp.concatenate([x + classes[:, None, None, None], 7 + x], axis=-1)

    one = Denoiser((), network, sde_lib.VESDE(), "eps").given(classes=jnp.array([1.0]))
    x, labels = jnp.ones((1, 2, 2, 3)), jnp.ones(1)
    np.testing.assert_array_equal(one.output(x, labels), 2 * x)
    np.testing.assert_array_equal(one.given(classes=jnp.array([4.0])).output(x, labels), 5 * x)
    both = Denoiser((), network, sde_lib.VESDE(), "both").given(classes=jnp.array([1.0]))
    assert both.output(x, labels).shape == (1, 2, 2, 6)
