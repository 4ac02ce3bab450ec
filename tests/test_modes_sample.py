"""What --mode=sample says of a run: the caption under its images and the line that closes it."""

from types import SimpleNamespace

import jax.numpy as jnp

from builders.model import Model
from configs import base
from models.denoiser import Denoiser
from modes.sample import caption, gain
from sde_lib import VESDE


def model_of(**sampling) -> Model:
    config = base.get_config()
    config.sampling.update(sampling)
    return Model(Denoiser(jnp.zeros(()), lambda params, x, labels: x, VESDE(num_scales=1000), "x0", "sigma"), config)


def sampler_of(nfe, gradient_calls=0):
    return SimpleNamespace(nfe=nfe, gradient_calls=gradient_calls)


def test_the_closing_line_compares_calls_with_those_of_the_published_sampler():
    model = model_of(method="unipc")  # a predictor and a corrector call at each of 1000 levels
    said = gain(model, sampler_of(10), 3, 2.0)
    assert "3 images of 10 network calls each in" in said and "200 times fewer calls than the 2000" in said
    assert "2.67 times fewer calls" in gain(model, sampler_of(750), 3, 2.0)
    model.config.sampling.update(n_steps_each=3)
    assert "400 times fewer calls than the 4000" in gain(model, sampler_of(10), 3, 2.0)
    model.config.model.num_times = 4  # a student of DSNO
    said = gain(model, sampler_of(1), 3, 2.0)
    assert "1 network calls (the work of 4) each" in said and "1,000 times fewer" in said
    assert gain(model, sampler_of(10), 0, 0.0) == "All images were there already."


def test_a_caption_names_task_method_mode_calls_and_seed():
    model = model_of(method="stsp2")
    assert caption(model, sampler_of(20)) == "stsp2, 20 network calls an image, seed 42"
    model.config.guidance.kind = "inpainting"
    said = caption(model, sampler_of(20, 39))
    assert said == "inpainting by stsp2, 39 gradient calls and 20 network calls an image, seed 42"
    masked = model_of(method="pds", pds_mode="paper", freq_mask_path="natural")
    assert caption(masked, sampler_of(8)) == "pds, paper, 8 network calls an image, seed 42"
