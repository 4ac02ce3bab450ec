"""From config.classifier, from a file that training wrote, or from one of ADM's, to a `NoisyClassifier`."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import checkpoints
import sde_lib
from array_types import Image, PerImage
from builders.config import shipped
from builders.model import Model
from checkpoints import fitting, names
from configs import base as base_config
from models.classifier import EncoderUNet
from models.noisy_classifier import NoisyClassifier


@dataclasses.dataclass(frozen=True)
class Apply:
    """`(params, x, labels) -> logits` of a Flax module; equal for equal modules, which share compiled programs."""

    module: Any

    def __call__(self, params: Any, x: Image, labels: jax.Array) -> jax.Array:
        return self.module.apply({"params": params}, x, labels)


@dataclasses.dataclass(frozen=True)
class ChainIndex:
    """From noise scales to the levels of a chain, which ADM's classifiers are told."""

    sde: sde_lib.DiscreteVPSDE

    def __call__(self, s: PerImage) -> PerImage:
        return self.sde.index(self.sde.time(s))


def create_network(classifier: ConfigDict) -> EncoderUNet:
    """The network of config.classifier. Raises ValueError where no number of classes is known."""
    if classifier.num_classes < 2:
        raise ValueError(
            f"config.classifier.num_classes={classifier.num_classes} must be at least 2: train it on images in class "
            "folders, one folder a class, or set it."
        )
    accepted = set(inspect.signature(EncoderUNet).parameters) - {"parent", "name"}
    values = {key: value for key, value in classifier.to_dict().items() if key in accepted}
    settings: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return EncoderUNet(**settings)


def param_shapes(network: EncoderUNet, image_shape: tuple[int, int, int]) -> dict:
    """The parameter tree the network expects, as ShapeDtypeStructs; nothing is computed."""
    x, labels = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), x, labels)["params"]


def create_classifier(classifier: ConfigDict, params: Any, sde: sde_lib.GaussianSDE, centered: bool) -> NoisyClassifier:
    """The network of config.classifier with `params`, for images of any process and data range."""
    return NoisyClassifier(params, Apply(create_network(classifier)), sde, centered)


def read_classifier(path: str | Path, key: str = "config.guidance.classifier") -> tuple[ConfigDict, Any]:
    """The config and the parameters of a file that `--mode=train --config FILE:classifier` wrote.

    Raises FileNotFoundError or ValueError that names the file (and `key`, where its name came from).
    """
    stored = _read(path, key)
    file = stored.path
    if stored.config is None or "classifier" not in stored.extra:
        raise ValueError(
            f"{key}: {file} holds no classifier of noisy images (it is {stored.format}); give the file that "
            "--mode=train --config FILE:classifier wrote."
        )
    config = base_config.get_config()
    with config.unlocked():
        config.update(stored.config)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    expected = fitting.shapes(param_shapes(create_network(config.classifier), shape))
    return config, jax.tree.map(jnp.asarray, fitting.fit(stored.raw, expected, file))


def _read(path: str | Path, key: str) -> checkpoints.Checkpoint:
    file = Path(shipped(str(path)))
    if not str(path) or not file.is_file():
        raise FileNotFoundError(
            f"{key}={str(path)!r} is no file; train a classifier with --mode=train --config FILE:classifier."
        )
    return checkpoints.read(file)


def load_classifier(path: str | Path, model: Model) -> tuple[NoisyClassifier, int]:
    """A trained classifier to guide `model`, and its number of classes; their processes may differ.

    A file of ADM's carries no architecture: config.classifier of the model's config describes it.

    Raises what `read_classifier` raises, and ValueError when it was trained on images of another shape.
    """
    stored = _read(path, "config.guidance.classifier")
    if stored.format == "openai_torch":
        return _published(stored, model)
    config, params = read_classifier(path)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    if shape != model.shape:
        raise ValueError(f"{path} classifies images of shape {shape}, the model draws {model.shape}; train another.")
    classifier = create_classifier(config.classifier, params, model.sde, model.config.data.centered)
    return classifier, config.classifier.num_classes


def _published(stored: checkpoints.Checkpoint, model: Model) -> tuple[NoisyClassifier, int]:
    """One of ADM's classifiers on the chain of the model, or DDPM's where the model is of another kind."""
    network = create_network(model.config.classifier)
    expected = fitting.shapes(param_shapes(network, model.shape))
    params = jax.tree.map(jnp.asarray, fitting.fit(names.network_names(stored, expected), expected, stored.path))
    chain = model.sde if isinstance(model.sde, sde_lib.DiscreteVPSDE) else sde_lib.DiscreteVPSDE()
    classifier = NoisyClassifier(params, Apply(network), model.sde, model.config.data.centered, ChainIndex(chain))
    return classifier, network.num_classes
