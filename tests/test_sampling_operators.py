"""Linear measurements: adjoint, spectral and pseudo-inverse laws of each, those among them where A A^T is not 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import operators
from sampling.operators import BlockMeans, Grayscale, Inpainting

SHAPE = (6, 12, 3)
OPERATORS = {
    "binary mask": Inpainting((jax.random.uniform(jax.random.key(5), (6, 12, 1)) > 0.4).astype(float)),
    "soft mask": Inpainting(jax.random.uniform(jax.random.key(6), SHAPE)),
    "mean of colours": Grayscale((1 / 3, 1 / 3, 1 / 3)),
    "luma": Grayscale((0.299, 0.587, 0.114)),
    "blocks of 2": BlockMeans(2),
    "blocks of 3": BlockMeans(3),
}


def sides(operator):
    """A random image and a random observation."""
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    return x, jax.random.normal(jax.random.key(1), operator.apply(x).shape)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_transpose_is_the_adjoint(operator):
    x, v = sides(operator)
    np.testing.assert_allclose(jnp.vdot(operator.apply(x), v), jnp.vdot(x, operator.transpose(v)), rtol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_gram_applies_functions_of_a_a_transposed(operator):
    _, v = sides(operator)
    once = operator.apply(operator.transpose(v))
    np.testing.assert_allclose(operator.gram(lambda lam: lam, v), once, rtol=1e-12, atol=1e-14)
    twice = operator.apply(operator.transpose(once))
    np.testing.assert_allclose(operator.gram(lambda lam: 2 + lam**2, v), 2 * v + twice, rtol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_largest_bounds_a_a_transposed_and_is_reached(operator):
    _, v = sides(operator)
    for _ in range(400):
        v = operator.apply(operator.transpose(v / jnp.sqrt(jnp.sum(v**2))))
    np.testing.assert_allclose(jnp.sqrt(jnp.sum(v**2)), operator.largest(), rtol=1e-3)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_pseudo_inverse_fulfils_the_laws_of_moore_and_penrose(operator):
    x, v = sides(operator)

    def inverse(v):
        return operators.pseudo_inverse(operator, v)

    np.testing.assert_allclose(operator.apply(inverse(operator.apply(x))), operator.apply(x), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(inverse(operator.apply(inverse(v))), inverse(v), rtol=1e-10, atol=1e-12)
    w = operator.apply(jax.random.normal(jax.random.key(2), x.shape))
    np.testing.assert_allclose(jnp.vdot(w, operator.apply(inverse(v))), jnp.vdot(operator.apply(inverse(w)), v))
    z = operator.transpose(w) + x
    np.testing.assert_allclose(jnp.vdot(z, inverse(operator.apply(x))), jnp.vdot(inverse(operator.apply(z)), x))


def test_tasks_measure_what_their_names_say():
    x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 3))
    mask = np.zeros((4, 4))
    mask[:, 2:] = 1
    np.testing.assert_array_equal(operators.create("inpainting", (4, 4, 3), mask).apply(x)[:, :, 2:], x[:, :, 2:])
    assert not operators.create("inpainting", (4, 4, 3), mask).apply(x)[:, :, :2].any()
    for name in ("colorization", "colourisation"):
        np.testing.assert_allclose(operators.create(name, (4, 4, 3)).apply(x), x.mean(-1, keepdims=True))
    small = operators.create("super_resolution", (4, 4, 3), factor=2).apply(x)
    np.testing.assert_allclose(small[0, 1, 0], x[0, 2:4, 0:2].mean((0, 1)))


@pytest.mark.parametrize(
    "task, settings, message",
    [
        ("deblurring", {}, r"guidance.task='deblurring' is no inverse problem; choose one of \['inpainting'"),
        ("inpainting", {}, "is missing; give an image of the same size"),
        ("inpainting", {"mask": np.ones((8, 4))}, r"mask \(config.guidance.mask\) has shape \(8, 4, 1\)"),
        ("inpainting", {"mask": np.full((4, 4), 255)}, r"values in \[255, 255\]; they must lie in \[0, 1\]"),
        ("inpainting", {"mask": np.zeros((4, 4))}, "0 everywhere: nothing is observed"),
        ("inpainting", {"mask": np.full((4, 4), np.nan)}, r"must lie in \[0, 1\]"),
        ("super_resolution", {"factor": 3}, "factor=3 does not divide images of 4 x 4"),
        ("super_resolution", {"factor": 1}, "factor=1 does not divide"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(task, settings, message):
    with pytest.raises(ValueError, match=message):
        operators.create(task, (4, 4, 3), **settings)


def test_grey_models_cannot_be_coloured():
    with pytest.raises(ValueError, match="colour images, this one has 1 channel"):
        operators.create("colorization", (4, 4, 1))
