"""Recorded schedules and conversions of the original progressive-distillation program, and its view of other models."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import GOLDENS

import sde_lib
from models import layers, v_diffusion
from sampling.thresholding import Thresholded
from sde_lib import VPSDE, CosineVPSDE

CORE = np.load(GOLDENS / "distill" / "pd_core.npz")
SEEN = {key.removeprefix("conv/"): CORE[key] for key in CORE.files if key.startswith("conv/")}
DSNO = np.load(GOLDENS / "dsno" / "dsno.npz")


def wide(values):
    return values[:, None, None]


def test_the_cosine_schedule_and_what_the_network_is_told_are_the_recorded_ones():
    sde = CosineVPSDE()
    np.testing.assert_allclose(sde.alpha(SEEN["t"]), SEEN["alpha"], rtol=1e-9)
    np.testing.assert_allclose(sde.sigma(SEEN["t"]), SEEN["sigma"], rtol=1e-9)
    np.testing.assert_allclose(-2 * np.log(sde.noise_scale(SEEN["t"])), SEEN["logsnr"], rtol=1e-9)
    told = v_diffusion.noise_input("inv_cos", jnp.asarray(sde.noise_scale(SEEN["t"])))
    np.testing.assert_allclose(told, SEEN["inv_cos_input"], rtol=1e-9)
    expected = DSNO["dsno/sinusoid"]
    embedded = layers.positional_embedding(1000 * jnp.asarray(DSNO["dsno/inv_cos_input"]), expected.shape[-1])
    np.testing.assert_allclose(embedded, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "both"])
def test_every_prediction_gives_the_recorded_image_and_noise(kind):
    alpha, sigma = wide(SEEN["alpha"]), wide(SEEN["sigma"])
    x, eps, z = SEEN["x"], SEEN["eps"], SEEN["z"]
    np.testing.assert_allclose(alpha * x + sigma * eps, z, rtol=1e-12)
    np.testing.assert_allclose(sde_lib.predict("v", x, eps, alpha, sigma), SEEN["v"], rtol=1e-9, atol=1e-12)
    found = sde_lib.x0_and_eps(kind, sde_lib.predict(kind, x, eps, alpha, sigma), z, alpha, sigma)
    # alpha and sigma fall to 5e-5 at the ends, where one of the two is badly known.
    np.testing.assert_allclose(found[0], x, atol=1e-9)
    np.testing.assert_allclose(found[1], eps, atol=1e-9)
    np.testing.assert_allclose(sde_lib.x0_and_eps("v", SEEN["v"], z, alpha, sigma)[0], SEEN["x_from_v"], atol=1e-9)
    np.testing.assert_allclose(sde_lib.x0_and_eps("x0", x, z, alpha, sigma)[1], SEEN["eps_from_x"], atol=1e-7)


@pytest.mark.parametrize("clip", [False, True])
def test_two_heads_are_combined_and_clipped_as_recorded(clip):
    alpha, sigma, z = wide(SEEN["alpha"]), wide(SEEN["sigma"]), SEEN["z"]
    x0, eps = sde_lib.x0_and_eps("both", SEEN["both_output"], z, alpha, sigma)
    if clip:
        x0 = np.asarray(Thresholded(lambda y, s: y, -1.0, 1.0)(jnp.asarray(x0)[..., None], jnp.ones(())))[..., 0]
        eps = sde_lib.x0_and_eps("x0", x0, z, alpha, sigma)[1]
    v = sde_lib.predict("v", x0, eps, alpha, sigma)
    for name, value in (("x", x0), ("eps", eps), ("v", v)):
        np.testing.assert_allclose(value, SEEN[f"both_clip{int(clip)}_model_{name}"], rtol=1e-6, atol=1e-6)


def test_a_variance_exploding_teacher_is_the_recorded_preserving_one():
    s, y = SEEN["ve_sigma"], SEEN["ve_z"]
    x0, eps = sde_lib.x0_and_eps("score", SEEN["ve_score"], y, 1.0, wide(s))
    np.testing.assert_allclose(x0, SEEN["ve_xhat"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(eps, SEEN["ve_epshat"], rtol=1e-10)
    alpha = 1 / np.sqrt(1 + s**2)
    np.testing.assert_allclose(alpha, SEEN["ve_to_vp_alpha"], rtol=1e-10)
    np.testing.assert_allclose(alpha * s, SEEN["ve_to_vp_sigma"], rtol=1e-10)
    np.testing.assert_allclose(wide(alpha) * y, SEEN["ve_to_vp_z"], rtol=1e-10)
    np.testing.assert_allclose(-2 * np.log(s), SEEN["ve_logsnr"], rtol=1e-10, atol=1e-12)
    v = sde_lib.predict("v", x0, eps, wide(alpha), wide(alpha * s))
    np.testing.assert_allclose(v, SEEN["ve_vhat"], rtol=1e-9, atol=1e-10)


def test_a_linear_preserving_teacher_has_the_recorded_levels():
    sde = VPSDE()
    np.testing.assert_allclose(sde.alpha(SEEN["vp_t"]), SEEN["vp_alpha"], rtol=1e-9)
    np.testing.assert_allclose(sde.sigma(SEEN["vp_t"]), SEEN["vp_sigma"], rtol=1e-9)
    np.testing.assert_allclose(-2 * np.log(sde.noise_scale(SEEN["vp_t"])), SEEN["vp_logsnr"], rtol=1e-9, atol=1e-12)
