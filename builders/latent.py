"""config.latent -> the codec and the text network of a latent model; what is of pixels alone is refused here."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

import checkpoints
from array_types import Image
from builders import latent_parts
from builders.config import shipped
from builders.prompts import TextNetwork
from checkpoints import Checkpoint
from models.latent import Codec


def is_latent(config: ConfigDict) -> bool:
    """Whether diffusion sees latents."""
    return config.latent.kind != "none"


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(h, w, c) of an image: what diffusion draws, or what a codec makes of it."""
    data, latent = config.data, config.latent
    if not is_latent(config):
        return data.image_size, data.image_size, data.num_channels
    side = data.image_size * 2 ** (len(latent.block_out_channels) - 1)
    return side, side, latent.image_channels


def refuse(config: ConfigDict, what: str, remedy: str) -> None:
    """Raises ValueError if config is of a latent model, for which `what` has no meaning."""
    if is_latent(config):
        raise ValueError(
            f"{what}: this model draws latents of {config.data.image_size} x {config.data.image_size} x "
            f"{config.data.num_channels} (config.latent.kind={config.latent.kind!r}), not pixels. {remedy}"
        )


def refuse_conditions(config: ConfigDict) -> None:
    """Raises ValueError if the network is told prompts, or classes as context, which training does not bring."""
    kind = config.latent.text.kind
    if kind != "none":
        raise ValueError(
            f"config.latent.text.kind={kind!r}: networks on latents are trained without prompts and without classes as "
            "context; classes in the embedding (config.data.num_classes) go in."
        )


def load_parts(stored: Checkpoint, config: ConfigDict) -> tuple[Codec | None, TextNetwork | None]:
    """What a latent model has beside its network, from its own file or from config.latent.checkpoint.

    Raises ValueError that names the file where it lacks one or holds another.
    """
    latent, text = config.latent, config.latent.text
    if not is_latent(config):
        return None, None
    source = checkpoints.read(shipped(latent.checkpoint)) if latent.checkpoint else stored
    if not latent.scale_factor:
        latent.scale_factor = _scale_of(stored)
    codec = create_codec(config, *latent_parts.load_codec(source, config))
    if text.kind == "none":
        return codec, None
    module, params = latent_parts.load_text_encoder(source, config)
    read = _ReadClasses(module) if text.kind == "class" else _ReadText(module)
    tokenizer = latent.tokenizer or str(source.extra.get("tokenizer", ""))
    return codec, TextNetwork(text.kind, read, params, tokenizer, text.max_tokens, text.vocab_size)


def _scale_of(stored: Checkpoint) -> float:
    """config.latent.scale_factor as the file of the network says it."""
    said = (stored.config or {}).get("latent", {}) if stored.format == "native" else {}
    if not said.get("scale_factor"):
        raise ValueError(
            f"config.latent.scale_factor=0 takes what the weight file says, and {stored.path} says nothing; set it to "
            "1/std of the latents that the network was trained on."
        )
    return float(said["scale_factor"])


@dataclasses.dataclass(frozen=True)
class _ReadText:
    """`(params, ids [b, n]) -> context [b, n, d]`: CLIP's last hidden states."""

    module: Any

    def __call__(self, params: Any, ids: jax.Array) -> jax.Array:
        return self.module.apply({"params": params}, ids).hidden


@dataclasses.dataclass(frozen=True)
class _ReadClasses:
    """`(params, classes [b]) -> context [b, 1, d]`."""

    module: Any

    def __call__(self, params: Any, classes: jax.Array) -> jax.Array:
        return self.module.apply({"params": params}, classes)


@dataclasses.dataclass(frozen=True)
class _Encode:
    """`(params, images) -> z` of an autoencoder: the mean where it has a spread."""

    module: Any
    channels: int

    def __call__(self, params: Any, images: Image) -> jax.Array:
        return self.module.apply({"params": params}, images, method="encode")[..., : self.channels]


@dataclasses.dataclass(frozen=True)
class _Decode:
    """`(params, z) -> images` of an autoencoder."""

    module: Any

    def __call__(self, params: Any, z: jax.Array) -> Image:
        return self.module.apply({"params": params}, z, method="decode")


def create_codec(config: ConfigDict, module: Any, params: Any) -> Codec:
    """The autoencoder `module` (models/autoencoder.py) with `params`, in the units of config.latent."""
    latent = config.latent
    return Codec(
        jax.tree.map(jax.numpy.asarray, params),
        _Encode(module, config.data.num_channels),
        _Decode(module),
        2 ** (len(latent.block_out_channels) - 1),
        latent.image_channels,
        float(latent.scale_factor),
        float(latent.shift_factor),
        latent.tile,
        latent.overlap if latent.tile else 0,
    )
