"""From a network to x0: the conversions of the published LD3 program, for every thing a network may predict."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import Mixture

import sde_lib
from models.denoiser import Denoiser

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
