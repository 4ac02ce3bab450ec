"""The sanity gate tells planted mistakes apart on exact denoisers of natural pictures, wrapped in every convention."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from builders import sanity as gate
from builders.analytic import natural_variance
from models import sanity
from models.denoiser import Denoiser
from run_lib import Model

SHAPE = (16, 16, 3)
GREY = 0.45
PROCESSES = {"ve": sde_lib.VESDE(), "vp": sde_lib.VPSDE(), "edm": sde_lib.EDMSDE(), "ddpm": sde_lib.DiscreteVPSDE()}


@dataclasses.dataclass(frozen=True)
class Photographs:
    """The exact network for Gaussian data with the spectrum of photographs, as `predicts` and `told` say.

    `told` is turned into time by formulas of its own. Equal ones share their compiled program.
    """

    sde: Any
    predicts: str
    told: str
    data_range: tuple[float, float]

    def __call__(self, params, x, labels):
        sde = self.sde
        t = {
            "t": lambda: labels,
            "999t": lambda: labels / 999,
            "sigma": lambda: sde.time(labels),
            "log_sigma": lambda: sde.time(jnp.exp(labels)),
            "index": lambda: labels / 999,
        }[self.told]()[:, None, None, None]
        low, high = self.data_range
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        mean = low + (high - low) * params["mean"]
        variance = (params["variance"] * (high - low) ** 2)[None]
        gain = variance / (variance + (sigma / alpha) ** 2)
        spectrum = jnp.fft.fft2(x / alpha - mean, axes=(1, 2)) * gain
        x0 = mean + jnp.fft.ifft2(spectrum, axes=(1, 2)).real
        eps = (x - alpha * x0) / sigma
        return {"score": -eps / sigma, "eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.predicts]


PARAMS = {"mean": np.float32(GREY), "variance": natural_variance(*SHAPE).astype(np.float32)}


def model_of(process, predicts, told, data_range, declared=None):
    """A model whose network follows the first four, and is declared to where `declared` says nothing else."""
    sde = PROCESSES[process]
    said = {"predicts": predicts, "told": told, "data_range": data_range} | (declared or {})
    network = Photographs(sde, predicts, told, data_range)
    return Model.from_function(network, PARAMS, sde, shape=SHAPE, **said)


CONVENTIONS = [
    ("ve", "score", "sigma", (0.0, 1.0)),
    ("vp", "eps", "999t", (-1.0, 1.0)),
    ("vp", "v", "t", (-1.0, 1.0)),
    ("edm", "x0", "log_sigma", (-1.0, 1.0)),
    ("ddpm", "eps", "index", (-1.0, 1.0)),
    ("ve", "x0", "log_sigma", (-0.5, 0.5)),
]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_is_right_is_left_in_peace(convention):
    verdict = gate.check(model_of(*convention))
    assert verdict.right and verdict.changes == {} and verdict.declared.ratio < sanity.GOOD
    assert verdict.report().startswith("It denoises as declared")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_wrong_prediction_is_named_with_the_right_one(convention):
    wrong = {"score": "eps", "eps": "v", "v": "x0", "x0": "eps"}[convention[1]]
    verdict = gate.check(model_of(*convention, {"predicts": wrong}))
    assert not verdict.right and verdict.changes == {"predicts": f'predicts="{convention[1]}"'}
    assert f'predicts="{convention[1]}"' in verdict.report() and "WARNING" in verdict.report()


@pytest.mark.parametrize("convention", CONVENTIONS[:5])
def test_a_wrong_data_range_is_named_with_the_right_one(convention):
    wrong = (0.0, 1.0) if convention[3] == (-1.0, 1.0) else (-1.0, 1.0)
    verdict = gate.check(model_of(*convention, {"data_range": wrong}))
    assert verdict.changes == {"data_range": f"data_range={convention[3]}"}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_wrong_time_convention_is_named_with_the_right_one(convention):
    wrong = {"sigma": "log_sigma", "log_sigma": "sigma", "999t": "t", "t": "999t", "index": "t"}[convention[2]]
    verdict = gate.check(model_of(*convention, {"told": wrong}))
    # DDPM's index and 999 t are the same number.
    assert verdict.changes in ({"told": f'told="{convention[2]}"'}, {"told": 'told="999t"'})


def test_three_mistakes_at_once_have_one_answer():
    wrong = {"predicts": "v", "told": "sigma", "data_range": (0.0, 1.0)}
    verdict = gate.check(model_of("vp", "eps", "999t", (-1.0, 1.0), wrong))
    changes = {"predicts": 'predicts="eps"', "told": 'told="999t"', "data_range": "data_range=(-1.0, 1.0)"}
    # With 1000 levels t (N - 1) is the same number.
    assert verdict.changes in (changes, changes | {"told": 'told="fractional_level"'})


def test_a_network_of_noise_is_not_repaired_by_words():
    model = Model.from_function(lambda params, x, labels: jnp.sin(900 * x), None, sde_lib.VPSDE(), shape=SHAPE)
    verdict = gate.check(model)
    assert not verdict.denoises and not verdict.right
    assert "nothing else" in verdict.report() or "comes closer" in verdict.report()


def test_a_network_that_knows_single_pixels_only_passes():
    def white(params, x, labels):
        s = labels[:, None, None, None]
        return 0.5 + (x - 0.5) * 0.0625 / (0.0625 + s**2)

    verdict = gate.check(Model.from_function(white, None, sde_lib.VESDE(), "x0", "sigma", (0, 1), SHAPE))
    assert verdict.right and 0.8 < verdict.declared.ratio < 1.2


@pytest.mark.parametrize("ema", [True, False])
def test_averaged_weights_win_unless_they_are_worse(ema):
    model = model_of("ve", "score", "sigma", (0.0, 1.0))
    model.config.model.ema = ema
    close = {"mean": PARAMS["mean"], "variance": PARAMS["variance"] * 0.9}
    worse = {"mean": PARAMS["mean"], "variance": PARAMS["variance"] * 0.01}
    assert gate.check(model, close).changes == ({} if ema else {"ema": "--config.model.ema=True"})
    assert gate.check(model, worse).changes == {}
    poor = dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, params=worse))
    assert gate.check(poor, PARAMS).changes == {"ema": f"--config.model.ema={not ema}"}


def test_conventions_that_feed_a_network_alike_share_its_calls():
    calls = []

    def network(params, x, labels):
        calls.append(x.shape)
        return x

    declared = sanity.Convention(Denoiser(None, network, sde_lib.VPSDE(), "eps", "t"), (0.0, 1.0), {})
    others = sanity.variations(declared, lambda name, value: value)
    sanity.look(declared, others, np.random.default_rng(0).uniform(size=(2, 4, 4, 3)))
    assert {other.denoiser.predicts for other in others} == set(sde_lib.PREDICTIONS)
    told = {other.denoiser.told for other in others}
    assert told == {"sigma", "log_sigma", "t", "999t", "level", "fractional_level"}
    assert len(calls) == len(told) * len(sanity.SCALES)


def test_the_shares_of_noise_left_are_those_of_the_pictures():
    """The network that returns what it is given leaves all of the noise, and the ratio is (s^2 + v)/v."""
    pictures = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    denoiser = Denoiser(None, lambda params, x, labels: x, sde_lib.VESDE(), "x0", "sigma")
    judged = sanity.judge(sanity.Convention(denoiser, (-1.0, 1.0), {}), pictures)
    np.testing.assert_allclose(judged.left, 1, atol=0.2)
    variance = pictures.var(axis=(1, 2)).mean()
    ratios = (np.array(sanity.SCALES) ** 2 + variance) / variance * judged.left.mean(axis=1)
    np.testing.assert_allclose(judged.ratio, np.exp(np.log(ratios).mean()), rtol=1e-4)


def test_a_warning_before_a_long_run_names_what_is_left_and_what_to_do():
    assert gate.warning(model_of("ve", "x0", "sigma", (0.0, 1.0))) == ""
    said = gate.warning(model_of("ve", "x0", "sigma", (0.0, 1.0), {"predicts": "eps"}))
    assert "does not denoise as its config says" in said and "--mode=inspect" in said
