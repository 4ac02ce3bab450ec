"""The shapes that annotations promise are checked while tests run (tests/shape_checks.py)."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from models.denoiser import Denoiser
from models.resample import naive_downsample
from precond.fourier import FrequencyPreconditioner
from sampling.correctors import step_size
from sampling.time_grids import with_zero
from sde_lib import VPSDE

M = FrequencyPreconditioner(jnp.ones((4, 4, 3)))
IMAGES = jnp.ones((2, 4, 4, 3))


def test_an_image_without_its_batch_axis_is_caught():
    assert M.apply(IMAGES).shape == IMAGES.shape
    with pytest.raises(TypeCheckError, match="Float.*'b h w c'"):
        M.apply(IMAGES[0])


def test_axes_of_one_name_have_one_size():
    with pytest.raises(TypeCheckError, match="'b h w c'"):
        M.update(IMAGES, IMAGES[:1], 1.0, 1.0)
    one = jnp.ones(())
    with pytest.raises(TypeCheckError, match="'b'"):
        step_size(one, one, jnp.ones(2), jnp.ones(3), "sample")


def test_a_table_is_an_array_of_numpy():
    with pytest.raises(TypeCheckError, match="ndarray, 'n'"):
        with_zero(jnp.ones(3))


def test_a_network_is_told_one_noise_level_an_image_and_answers_with_a_map_of_their_size():
    repeated = Denoiser((), lambda params, x, labels: x[:, :3], VPSDE(), "eps", "t")
    with pytest.raises(TypeCheckError, match="return value"):
        repeated.output_at(IMAGES, jnp.ones(2))
    with pytest.raises(TypeCheckError, match="'b'"):
        repeated.output_at(IMAGES, jnp.ones(3))
    assert naive_downsample(IMAGES).shape == (2, 2, 2, 3)
