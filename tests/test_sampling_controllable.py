"""Observations in predictor-corrector samplers: exact at the end, at the right noise on the way, and no other harm."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from precond.base import Identity
from precond.fourier import FourierPreconditioner
from sampling import base, controllable, operators, predictor_corrector
from sampling.controllable import Observation
from sampling.predictor_corrector import PredictorCorrector

SHAPE = (8, 8, 3)
PROCESSES = {"ve": sde_lib.VESDE(0.01, 10.0), "vp": sde_lib.VPSDE(), "subvp": sde_lib.SubVPSDE()}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["correlation"], meta_fields=["sde", "mean", "std"])
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Gaussian data whose pixels in the left and the right half are correlated; the exact score."""

    correlation: Any
    sde: Any
    mean: float = 0.4
    std: float = 0.3

    def score(self, x, t):
        alpha, sigma = (value(t)[:, None, None, None] for value in (self.sde.alpha, self.sde.sigma))
        left, right = jnp.split(x - alpha * self.mean, 2, axis=2)
        signal = (alpha * self.std) ** 2
        even, odd = signal * (1 + self.correlation) + sigma**2, signal * (1 - self.correlation) + sigma**2
        plus, minus = (left + right) / 2 / even, (left - right) / 2 / odd
        return -jnp.concatenate([plus + minus, plus - minus], axis=2)


def half_mask():
    mask = np.zeros((8, 8, 1))
    mask[:, :4] = 1
    return operators.create("inpainting", SHAPE, mask)


def observed_images(count, std=0.3):
    return 0.4 + std * jax.random.normal(jax.random.key(5), (count, *SHAPE), jnp.float32)


def sampler_of(process, operator, truth, settings=None, n=24, correlation=0.0, m=None, record=False):
    sde = PROCESSES[process]
    settings = settings or PredictorCorrector()
    levels = sde.levels(n, 1e-3)
    inner = predictor_corrector.create(settings, Pairs(correlation, sde), levels, m or Identity(), SHAPE, False, record)
    return controllable.create(
        inner, settings, sde, levels, lambda keys: Observation(operator, operator.apply(truth[: len(keys)]))
    )


def draw(*args, count=4, **settings):
    truth = settings.pop("truth", observed_images(count))
    sampler = sampler_of(args[0], args[1], truth, *args[2:], **settings)
    operands, state = sampler.begin(jax.random.split(jax.random.key(0), count))
    state, records = base.integrate(sampler.step, operands, state, sampler.rows)
    return truth, np.asarray(sampler.image(state)), records


@pytest.mark.parametrize(
    ("process", "task"),
    [("ve", "inpainting"), ("vp", "inpainting"), ("subvp", "colorization"), ("ve", "super_resolution")],
)
def test_the_image_explains_the_observation_exactly(process, task):
    operator = half_mask() if task == "inpainting" else operators.create(task, SHAPE, factor=2)
    truth, images, _ = draw(process, operator)
    np.testing.assert_allclose(operator.apply(jnp.asarray(images)), operator.apply(truth), atol=1e-6)
    assert np.isfinite(images).all()
    assert np.abs(images - truth).mean() > 0.05  # the rest was drawn


@pytest.mark.parametrize(
    "settings",
    [PredictorCorrector(predictor="none", corrector="ald", n_steps_each=2), PredictorCorrector(noise_removal=False)],
)
def test_it_is_exact_too_where_the_sampler_ends_in_noise(settings):
    truth, images, _ = draw("ve", half_mask(), settings)
    np.testing.assert_allclose(images[:, :, :4], truth[:, :, :4], atol=1e-6)


def test_a_preconditioner_changes_the_free_pixels_only():
    freq = 1 + 0.2 * np.cos(2 * np.pi * np.fft.fftfreq(8))[:, None, None] * np.ones(SHAPE)
    m = FourierPreconditioner(jnp.float32(freq), jnp.ones(SHAPE, jnp.float32))
    truth, images, _ = draw("ve", half_mask(), m=m)
    _, plain, _ = draw("ve", half_mask())
    np.testing.assert_allclose(images[:, :, :4], truth[:, :, :4], atol=1e-6)
    assert np.abs(images - plain)[:, :, 4:].max() > 1e-3


def test_colours_are_coupled_as_in_the_rotated_space_of_the_published_program():
    """Their orthonormal 3 x 3 has (1, 1, 1)/sqrt(3) as its first axis; the first coordinate is replaced."""
    basis = np.linalg.qr(np.array([[1.0, 0, 0], [1, 1, 0], [1, 0, 1]]))[0]
    basis *= np.sign(basis[0, 0])
    x, truth, z = jax.random.normal(jax.random.key(1), (3, 2, *SHAPE))
    coordinates = x @ basis
    coordinates = coordinates.at[..., 0].set(((0.7 * truth + 1.3 * z) @ basis)[..., 0])
    operator = operators.create("colorization", SHAPE)
    ours = controllable.put_back(Observation(operator, operator.apply(truth)), x, jnp.float32(0.7), jnp.float32(1.3), z)
    np.testing.assert_allclose(ours, coordinates @ basis.T, atol=1e-5)


@pytest.mark.parametrize("process", ["ve", "vp"])
def test_on_the_way_the_known_part_has_the_noise_of_the_level_it_has_come_to(process):
    truth, _, (states, _) = draw(process, half_mask(), count=32, record=True)
    sde = PROCESSES[process]
    t = sde.levels(24, 1e-3).t
    for k in (1, 10, 20):
        for row, time in ((2 * k, t[k]), (2 * k + 1, t[k + 1])):  # corrector, predictor
            noise = (np.asarray(states[row])[:, :, :4] - sde.alpha(time) * np.asarray(truth)[:, :, :4]) / sde.sigma(
                time
            )
            assert abs(noise.std() - 1) < 0.03 and abs(noise.mean()) < 0.06


def test_noise_that_is_put_back_is_not_the_noise_of_the_steps():
    _, _, (states, _) = draw("ve", half_mask(), count=32, record=True)
    known, free = np.asarray(states[20])[:, :, :4].ravel(), np.asarray(states[20])[:, :, 4:].ravel()
    assert abs(np.corrcoef(known, free)[0, 1]) < 0.1


def test_pixels_that_know_nothing_of_one_another_are_drawn_as_if_nothing_were_known():
    _, images, _ = draw("ve", half_mask(), PredictorCorrector("ancestral", "none"), n=200, count=32)
    free = images[:, :, 4:]
    assert abs(free.mean() - 0.4) < 0.02 and abs(free.std() - 0.3) < 0.015


def test_correlated_pixels_follow_what_is_known():
    """The conditional mean of the right half is mean + correlation (known - mean), its std that of the rest."""
    settings = PredictorCorrector(predictor="ancestral", n_steps_each=3)
    truth, images, _ = draw("ve", half_mask(), settings, n=200, count=16, correlation=0.8)
    known, free = np.asarray(truth)[:, :, :4].ravel() - 0.4, images[:, :, 4:].ravel() - 0.4
    slope = (known @ free) / (known @ known)
    assert abs(slope - 0.8) < 0.05, slope
    assert abs((free - slope * known).std() - 0.3 * 0.6) < 0.02


def test_an_image_does_not_depend_on_its_neighbours():
    truth = observed_images(4)
    _, together, _ = draw("ve", half_mask(), truth=truth)
    sampler = sampler_of("ve", half_mask(), truth[2:3])
    operands, state = sampler.begin(jax.random.split(jax.random.key(0), 4)[2:3])
    state, _ = base.integrate(sampler.step, operands, state, sampler.rows)
    np.testing.assert_allclose(state.x[0], together[2], atol=2e-5)
