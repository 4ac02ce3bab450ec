"""config.latent and config.autoencoder -> a codec under training: its network, its loss, what it leaves on disk."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import checkpoints
import models
from builders import latent_parts
from builders.perceptual import load_perceptual
from checkpoints import native
from data.pipeline import to_model_range
from models.autoencoder import AutoencoderKL
from training import autoencoder
from training.autoencoder import AutoencoderLoss

FILE = Path("autoencoder") / "autoencoder.safetensors"  # below the work directory
CALL = 16  # images a call outside of training


def create_codec(config: ConfigDict, checkpoint: str = "") -> tuple[AutoencoderKL, Any]:
    """(module, parameters) of config.latent: those of a file of ours, or fresh ones drawn from config.seed.

    Raises ValueError for a codec that is not trained here.
    """
    if config.latent.kind != "kl":
        raise ValueError(
            f"config.latent.kind={config.latent.kind!r}: the codec that is trained here is 'kl'. Take a config of a "
            "latent model, such as --config configs/latent/flowers64.py:autoencoder."
        )
    if checkpoint:
        found = latent_parts.load_codec(checkpoints.read(checkpoint), config)
        assert isinstance(found[0], AutoencoderKL)
        return found[0], found[1]
    module = models.create_codec(config.latent.to_dict(), **_compute_type(config))
    assert isinstance(module, AutoencoderKL)
    x = jnp.zeros((1, module.factor, module.factor, module.image_channels))
    return module, jax.jit(module.init)(jax.random.key(config.seed), x)["params"]


def _compute_type(config: ConfigDict) -> dict[str, Any]:
    return {"dtype": jnp.bfloat16} if config.precision == "bfloat16" else {}


def create_loss(config: ConfigDict, module: AutoencoderKL) -> Callable[..., jax.Array]:
    """What `training.loop` takes: (params, batch of uint8 images, keys) -> the loss of each image, [b]."""
    settings = AutoencoderLoss(**config.autoencoder.to_dict())
    perceptual = load_perceptual(config.loss.weights) if config.loss.weights else None

    def encode(params: Any, x: Any) -> Any:
        return module.apply({"params": params}, x, method="encode")

    def decode(params: Any, z: Any) -> Any:
        return module.apply({"params": params}, z, method="decode")

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        x = to_model_range(batch["image"], centered=True)
        return autoencoder.loss(settings, encode, decode, params, x, keys, perceptual)

    return loss


def save(path: Path, config: ConfigDict, params: Any, facts: dict[str, Any]) -> None:
    """The codec as a file of its own, which config.latent.checkpoint may name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    native.write(path, {}, json.loads(config.to_json_best_effort()), facts, half=True, parts={"vae": params})


def moments_of(module: Any, params: Any, images: np.ndarray) -> np.ndarray:
    """What the encoder says of images, uint8 [n, h, w, 3] -> float32 [n, h/f, w/f, 2c], or c where it has no spread."""
    return _in_calls(functools.partial(_encode, module, params), images)


def reconstructions(module: Any, params: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(images through the means of their latents and back, in [-1, 1]; nats an image) of uint8 [n, h, w, 3]."""
    moments = moments_of(module, params, images)
    found = _in_calls(functools.partial(_decode, module, params), moments[..., : moments.shape[-1] // 2])
    return found, np.asarray(autoencoder.kl_divergence(jnp.asarray(moments)))


def _in_calls(function: Callable[[np.ndarray], jax.Array], rows: np.ndarray) -> np.ndarray:
    """`function` of CALL rows at a time, the last call filled up, so that one program serves all."""
    found = []
    for start in range(0, len(rows), CALL):
        part = rows[start : start + CALL]
        filled = np.concatenate([part, np.repeat(part[-1:], CALL - len(part), axis=0)])
        found.append(np.asarray(function(filled))[: len(part)])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=0)
def _encode(module: Any, params: Any, images: jax.Array) -> jax.Array:
    return module.apply({"params": params}, to_model_range(images, centered=True), method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(module: Any, params: Any, latents: jax.Array) -> jax.Array:
    return module.apply({"params": params}, latents, method="decode")
