"""Thresholding: the data range, the published quantile rule in any range, use by a solver."""

import jax.numpy as jnp
import numpy as np
import pytest
from sampling_oracles import Gaussian

from sampling import base, multistep, thresholding
from sampling.base import TimeGrid

X0 = jnp.asarray(3 * np.random.default_rng(0).standard_normal((2, 5, 5, 3)))


def test_static_thresholding_clips_to_the_data_range():
    for centered, low in ((True, -1.0), (False, 0.0)):
        wrapped = thresholding.thresholded(lambda y, s: y, "static", centered)
        np.testing.assert_array_equal(wrapped(X0, jnp.ones(())), np.clip(X0, low, 1.0))


def test_dynamic_thresholding_divides_by_each_images_own_quantile():
    images = X0.at[1].multiply(0.1)  # the second stays inside: untouched
    result = thresholding.dynamic_threshold(images, -1.0, 1.0, 0.9)
    q = np.quantile(np.abs(images[0]), 0.9)
    np.testing.assert_allclose(result[0], np.clip(images[0], -q, q) / q, rtol=1e-12)
    np.testing.assert_allclose(result[1], images[1], rtol=1e-12)
    assert np.mean(np.abs(result[0]) > 0.999) == pytest.approx(0.1, abs=0.03)


def test_dynamic_thresholding_is_the_same_in_both_data_ranges():
    centered = thresholding.thresholded(lambda y, s: y, "dynamic", True, 0.9)(X0, jnp.ones(()))
    unit = thresholding.thresholded(lambda y, s: y, "dynamic", False, 0.9)((X0 + 1) / 2, jnp.ones(()))
    np.testing.assert_allclose(unit, (centered + 1) / 2, rtol=1e-12)


def test_solvers_use_the_thresholded_estimate():
    s = np.array([5.0, 1.0, 0.0])
    denoiser = thresholding.thresholded(Gaussian(4.0, 0.5), "static", True)
    state = multistep.init(jnp.full((1, 1, 1, 1), 7.0))
    result, _ = base.integrate(multistep.step, denoiser, state, multistep.ddim(TimeGrid(s, s)))
    assert result.y.item() == 1.0
    assert thresholding.thresholded(denoiser, "none", True) is denoiser


@pytest.mark.parametrize(
    "kind, quantile, message",
    [
        ("soft", 0.9, "threshold='soft' is unknown; choose one of"),
        ("dynamic", 1.5, "quantile=1.5 must lie between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(kind, quantile, message):
    with pytest.raises(ValueError, match=message):
        thresholding.thresholded(Gaussian(0.0, 1.0), kind, True, quantile)
