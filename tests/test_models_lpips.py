"""LPIPS against torch-fidelity's functions on torchvision's networks with random weights, and its laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

from benchmarks.random_weights import random_state_dict
from builders.perceptual import param_shapes
from checkpoints import fitting, names
from models import lpips

SIDES = {"alex": 45, "vgg16": 37}


@functools.cache
def state_dict(kind):
    """What torchvision's files and LPIPS's heads hold, in torch's layout."""
    shapes = {}
    for path, shape in param_shapes(kind).items():
        module, leaf = path.split("/")
        name = module.replace("features_", "features.").replace("_model_1", ".model.1")
        shapes[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = (
            (*shape[:1:-1], *shape[:2]) if len(shape) > 1 else shape
        )
    weights = random_state_dict(shapes)
    return {name: np.abs(value) if name.startswith("lin") else value for name, value in weights.items()}


@functools.cache
def params(kind):
    expected = param_shapes(kind)
    return fitting.fit(names.flax_names_dotted(state_dict(kind), expected), expected, "random weights")


def images(kind):
    rng = np.random.default_rng(5)
    a = rng.uniform(-1, 1, (2, SIDES[kind], SIDES[kind] + 3, 3)).astype(np.float32)
    return a, np.clip(a + 0.3 * rng.normal(size=a.shape), -1, 1).astype(np.float32)


@functools.cache
def network(kind):
    return jax.jit(lambda a, b: lpips.Lpips(kind).apply({"params": params(kind)}, a, b))


@pytest.mark.parametrize("kind", sorted(lpips.STAGES))
def test_distances_are_those_of_the_torch_program(kind):
    with np.load(golden_folder("metrics") / "lpips.npz") as golden:
        np.testing.assert_allclose(network(kind)(*images(kind)), golden[kind], rtol=1e-4)


def test_an_image_is_no_distance_from_itself_and_the_order_does_not_matter():
    a, b = images("alex")
    there, back, none = (network("alex")(*pair) for pair in ((a, b), (b, a), (a, a)))
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert none.max() < 1e-12 and there.min() > 1e-3


def test_the_gradient_is_finite_where_features_vanish():
    gradient = jax.grad(lambda x: jnp.sum(lpips.unit(x) ** 2 * 3.0))
    assert jnp.isfinite(gradient(jnp.zeros((1, 2, 2, 5)))).all()
    x = jnp.array([[[[3.0, 4.0]]]])
    np.testing.assert_allclose(lpips.unit(x)[0, 0, 0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(gradient(x), 0, atol=1e-6)  # a length of 1 stays 1


@pytest.mark.parametrize("kind", sorted(lpips.STAGES))
def test_the_least_side_leaves_a_pixel_at_every_depth(kind):
    side = lpips.LEAST_SIDE[kind]
    network = lpips.FeatureMaps(kind)

    def last(side):
        x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        return jax.eval_shape(network.init_with_output, jax.random.key(0), x)[0][-1].shape

    assert min(last(side)) > 0 and min(last(side - 1)) == 0
