"""The variances that benchmarks/analytic_table.py follows are those of the images that the sampler draws."""

import numpy as np
import pytest

import run_lib
from benchmarks import analytic_table
from builders.analytic import natural_variance
from metrics import spectrum


@pytest.mark.parametrize("name", ["vanilla", "paper", "marginal", "corrector_only"])
def test_propagated_variances_are_those_of_drawn_images(name, monkeypatch):
    monkeypatch.setitem(analytic_table.SIGMA_MAX, 8, 30.0)
    monkeypatch.setitem(analytic_table.SNR, 8, 0.16)
    config = analytic_table.config_for(8, name, 40)
    config.sampling.update(microbatch=256, alpha=2.0)
    model = run_lib.load(config)
    drawn = run_lib.sample(model, {}, range(1024)).images
    power = spectrum.radial_average(np.abs(np.fft.fft2(np.moveaxis(drawn, -1, 1) - 0.5)) ** 2).mean((0, 1))
    exact = analytic_table.final_variances(config)[1:5]
    real = natural_variance(*model.shape)[0, 1:5, 0]
    assert not np.allclose(exact / real, 1, atol=0.05)  # there is an error to be followed
    np.testing.assert_allclose(power[1:] / (exact * 64), 1, atol=0.06)
