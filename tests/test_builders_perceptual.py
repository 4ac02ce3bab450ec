"""Weights of a perceptual distance: which are asked for, how they are read, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writers import tensor, write_zip
from test_models_lpips import images, network, state_dict

from builders import dsno as dsno_builder
from builders import ld3 as ld3_builder
from builders.model import Model
from builders.perceptual import load_perceptual
from sde_lib import VESDE


def write(path, weights):
    write_zip(path, {name: tensor(value, name) for name, value in weights.items()}, weights)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, weights = tmp_path_factory.mktemp("weights"), state_dict("alex")
    features = {name: value for name, value in weights.items() if name.startswith("features")}
    heads = {name: value for name, value in weights.items() if name.startswith("lin")}
    classifier = {"classifier.6.weight": np.zeros((10, 4), np.float32)}
    return write(folder / "alexnet.pth", features | classifier), write(folder / "alex.pth", heads)


def test_two_files_make_the_distance_in_the_range_of_the_model(files):
    loaded = load_perceptual(",".join(files), (0.0, 1.0))
    a, b = images("alex")
    found = jax.jit(loaded)((a + 1) / 2, (b + 1) / 2)
    np.testing.assert_allclose(found, network("alex")(a, b), rtol=1e-4)
    assert loaded.kind == "alex" and len(loaded.sha256.split(",")) == 2


def test_features_need_no_heads(files):
    loaded = load_perceptual(files[0], heads=False)
    maps = jax.eval_shape(loaded.features, jnp.zeros((2, 40, 40, 3)))
    assert [x.shape[-1] for x in maps] == [64, 192, 384, 256, 256]
    with_heads = load_perceptual(",".join(files), heads=False)
    assert len(jax.eval_shape(with_heads.features, jnp.zeros((1, 31, 31, 1)))) == 5


def test_what_is_missing_is_named(files, tmp_path):
    with pytest.raises(
        ValueError, match="config.loss.weights is empty, and a perceptual distance needs a network. Give"
    ):
        load_perceptual("")
    with pytest.raises(FileNotFoundError, match="config.loss.weights: There is no file no.pth.*Give torchvision's"):
        load_perceptual("no.pth")
    with pytest.raises(ValueError, match=r"holds no heads of LPIPS \(lin0.model.1.weight"):
        load_perceptual(files[0])
    with pytest.raises(ValueError, match="lacks it: features.0.weight of AlexNet or VGG16"):
        load_perceptual(files[1])
    weights = dict(state_dict("alex")) | {"features.3.bias": np.zeros(7, np.float32)}
    weights["lin5.model.1.weight"] = weights.pop("lin4.model.1.weight")
    with pytest.raises(
        ValueError, match=r"(?s)does not hold 'alex':.*lin4.*1 unexpected: lin5.*features_3/bias \(7,\)"
    ):
        load_perceptual(write(tmp_path / "w.pth", weights))


def test_images_too_small_for_the_network_are_refused(files):
    small = jnp.zeros((1, 30, 40, 3))
    with pytest.raises(ValueError, match=r"alex needs images of 31 px and more, got \(30, 40\)"):
        load_perceptual(",".join(files))(small, small)


def test_students_learn_by_it_where_their_loss_asks_for_it(files):
    model = Model.from_function(lambda params, x, t: x, {}, VESDE(), shape=(32, 32, 3), data_range=(0.0, 1.0))
    model.config.loss.weights = ",".join(files)
    model.config.ld3.loss, model.config.sampling.num_steps = "lpips", 3
    distance = ld3_builder.create_task(model, model.config).problem.objective.distance
    assert (distance.kind, distance.low, distance.high) == ("alex", 0.0, 1.0)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    each, slope = jax.eval_shape(
        lambda a, b: (distance(a, b), jax.grad(lambda a: distance(a, b).sum())(a)), images, images
    )
    assert each.shape == (2,) and slope.shape == images.shape and hash(distance)
    model.config.dsno.distance, model.config.loss.weights = "perceptual", files[0]
    settings = dsno_builder.loss_settings(model.config)
    assert len(jax.eval_shape(settings.features, images)) == 5 and hash(settings)
