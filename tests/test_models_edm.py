"""EDM's network scalings against the recorded wrappers, and around a network."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from models import edm

RECORDED = Path(__file__).parent / "goldens" / "edm" / "scalings.npz"
NAMES = {"edm": "EDM", "vp": "VP", "ve": "VE", "iddpm": "iDDPM"}


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_equal_the_recorded_wrappers(name):
    scaling = edm.SCALINGS[name]()
    with np.load(RECORDED) as golden:
        sigma, expected = golden["sigma"], golden[NAMES[name]]
        bounds = golden["range"][list(NAMES).index(name)]
    for sigmas in (sigma, jnp.asarray(sigma)):
        found = scaling(sigmas)
        for ours, theirs in zip(found, expected[:4], strict=True):
            assert type(ours) is type(sigmas)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(scaling.round(sigma), expected[4], rtol=1e-3 if name == "iddpm" else 1e-12)
    # The recorded lowest one of VP is 1e-6 exponentiated in float32.
    np.testing.assert_allclose(scaling.range(), bounds, rtol=3e-2 if name == "vp" else 1e-3)


def test_the_noise_scales_of_iddpm_equal_the_recorded_ones():
    with np.load(RECORDED) as golden:
        np.testing.assert_allclose(edm.IDDPMScaling().table[::40], golden["u"], rtol=1e-3)


def test_vp_scaling_is_an_eps_model_of_the_vp_process():
    sde, sigma = sde_lib.VPSDE(), np.array([0.01, 1.0, 100.0])
    at = edm.VPScaling()(sigma)
    np.testing.assert_allclose(at.c_noise, 999 * sde.time(sigma), rtol=1e-12)
    np.testing.assert_allclose(at.c_in, sde.alpha(sde.time(sigma)), rtol=1e-10)
    np.testing.assert_allclose(edm.VPScaling().range()[1], sde.noise_scale(1.0), rtol=1e-12)


@pytest.mark.parametrize("label, told", [("sigma", 3.0), ("c_noise", np.log(3) / 4), ("1000c_noise", 250 * np.log(3))])
def test_a_scaled_network_sees_unit_variance_and_its_label(label, told):
    def network(params, x, labels, classes):
        np.testing.assert_allclose(labels, [told, told], rtol=1e-6)
        np.testing.assert_array_equal(classes, [1, 2])
        return jnp.concatenate([params * x, 9 * x], -1)  # a learned variance behind

    x, sigma, classes = jnp.full((2, 2, 2, 3), 0.7), jnp.full(2, 3.0), jnp.array([1, 2])
    out = edm.Scaled(network, edm.EDMScaling(0.4), label=label)(2.0, x, sigma, classes=classes)
    total = 3.0**2 + 0.4**2
    expected = 0.7 * (0.4**2 / total + 3 * 0.4 / np.sqrt(total) * 2.0 / np.sqrt(total))
    np.testing.assert_allclose(out, np.full((2, 2, 2, 3), expected), rtol=1e-9)
    # The same image in [0, 1] at half the noise scale.
    other = edm.Scaled(network, edm.EDMScaling(0.4), False, label)(2.0, (x + 1) / 2, sigma / 2, classes=classes)
    np.testing.assert_allclose(other, (out + 1) / 2, rtol=1e-9)


def test_a_grid_is_moved_to_the_noise_scales_of_iddpm_in_units_of_the_data_range():
    scaling, s = edm.IDDPMScaling(levels=50), np.array([30.0, 1.0, 0.1, 0.0])
    found = edm.Scaled(pytest.fail, scaling, centered=False).round(s)
    nearest = [min(scaling.table, key=lambda u: abs(u - 2 * value)) for value in s]
    np.testing.assert_array_equal(2 * found, nearest)
    np.testing.assert_array_equal(edm.Scaled(pytest.fail).round(s), s)


def test_an_unknown_label_names_the_choices():
    with pytest.raises(ValueError, match=r"scaling_label='log' is unknown; choose one of \('sigma', 'c_noise'"):
        edm.Scaled(pytest.fail, label="log")
