"""The VE predictor-corrector against diffusers' ScoreSdeVeScheduler, with its noise (tests/goldens/diffusers)."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sampling_oracles import Mixture

from precond.base import Identity
from sampling import predictor_corrector as pc
from sde_lib import VESDE

GOLDEN = Path(__file__).parent / "goldens" / "diffusers" / "sched_score_sde_ve.npz"


class MixtureScore(NamedTuple):
    """The exact score of a mixture under a VE process."""

    mixture: Mixture
    sde: VESDE

    def score(self, x, t):
        sigma = self.sde.sigma(t[0])  # the batch shares one time
        return (self.mixture(x, sigma) - x) / sigma**2


def test_the_ve_sampler_walks_the_recorded_trajectory_update_by_update():
    golden = np.load(GOLDEN)
    config = json.loads(str(golden["config_json"]))
    n = config["num_inference_steps"]
    sde = VESDE(config["sigma_min"], config["sigma_max"], num_scales=config["num_train_timesteps"])
    np.testing.assert_allclose(sde.discrete_sigmas(n), golden["discrete_sigmas"], rtol=1e-5)
    settings = pc.PredictorCorrector(snr=config["snr"], pds_mode="paper", step_norm="batch", noise_removal=False)
    rows = pc.table(settings, sde, sde.levels(n, config["sampling_eps"], published=True), preconditioned=False)
    np.testing.assert_allclose(rows.t[::2], golden["timesteps"], rtol=1e-5, atol=1e-7)

    mixture = Mixture(jnp.asarray(golden["pi"]), jnp.asarray(golden["mu"]), jnp.sqrt(golden["s2"]))
    operands = pc.Operands(MixtureScore(mixture, sde), Identity(), None)

    @jax.jit
    def walk(x, rows, noise):
        def body(x, row_and_noise):
            x = pc.update(settings, operands, x, *row_and_noise)[0]
            return x, x

        return jax.lax.scan(body, x, (rows, noise))[1]

    noise = golden["noise"].reshape(2 * n, *golden["x"].shape[1:])
    states = np.asarray(walk(golden["x"][0], jax.tree.map(jnp.asarray, rows), noise))
    for ours, theirs in ((states[0::2], golden["x_after_correct"]), (states[1::2], golden["x"][1:])):
        assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True)) < 1e-5
    last_mean = states[-1] - rows.noise[-1] * noise[-1]
    np.testing.assert_allclose(last_mean, golden["x_mean_final"], rtol=1e-5, atol=1e-5)
