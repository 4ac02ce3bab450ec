"""Masks from images of the model's own: on a model whose spectrum is known."""

import json

import numpy as np
import pytest

from builders.analytic import natural_variance
from configs.ve import analytic
from masks.files import read_mask
from modes import masks
from run_lib import Request

SHAPE = (16, 16, 3)


def gaussian():
    """Weak fields of a natural spectrum about grey: nothing is clamped on the way to 8 bits."""
    config = analytic.get_config()
    config.data.image_size = 16
    config.model.update(components=1, residual=0.3)
    config.sampling.microbatch = 32
    config.sde.sigma_max = 10.0
    return config


def test_masks_of_the_models_own_images_are_those_of_its_distribution(tmp_path):
    masks.run(Request(gaussian(), tmp_path, from_model=128))
    freq, space = (read_mask(str(tmp_path / "masks" / f"{kind}.npy"), kind, SHAPE) for kind in ("freq", "space"))
    power = 0.09 * natural_variance(*SHAPE) * 256
    power[0, 0] += 128.0**2  # the grey mean
    inner = np.hypot(*np.meshgrid(np.fft.fftfreq(16) * 16, np.fft.fftfreq(16) * 16)) <= 6
    # A ring of few frequencies of 128 images is known to some per cent of its power.
    np.testing.assert_allclose(np.expm1(freq)[inner], power[inner], rtol=0.3)
    assert np.abs(np.log(np.expm1(freq)[inner] / power[inner])).mean() < 0.1
    second_moment = 0.25 + 0.09 * natural_variance(*SHAPE).mean()
    np.testing.assert_allclose(space, second_moment, rtol=0.2)
    np.testing.assert_allclose(space.mean(), second_moment, rtol=0.1)
    facts = json.loads((tmp_path / "masks" / "freq.json").read_text())
    assert facts["n"] == 128 and facts["method"] == "heun" and facts["calls"] == 35 and facts["radial"]
    assert len(facts["model"]) == 64


def test_a_named_method_draws_the_images(tmp_path):
    overrides = {"sampling.method": "ddim", "sampling.num_steps": 3}
    masks.run(Request(gaussian(), tmp_path, from_model=2, overrides=overrides))
    facts = json.loads((tmp_path / "masks" / "space.json").read_text())
    assert (facts["n"], facts["method"], facts["calls"]) == (2, "ddim", 3)


def test_one_image_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="--from_model=1: masks are means over images"):
        masks.run(Request(gaussian(), tmp_path, from_model=1))
