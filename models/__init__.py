"""Score networks and the one place where an architecture's name becomes a network."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.adm import ADM
from models.autoencoder import AutoencoderKL, VQModel
from models.clip import ClassEmbedder, CLIPImage, CLIPText
from models.ddpm import DDPM
from models.edm_unet import DhariwalUNet, SongUNet
from models.layers import Downsample, Upsample
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2
from models.pd_unet import PDUNet
from models.unet2d import UNet2D
from models.unet2d_condition import UNet2DCondition
from models.v_diffusion import VDiffusionUNet

NETWORKS = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "ncsnv2_64": NCSNv2,
    "adm": ADM,
    "song_unet": SongUNet,
    "dhariwal_unet": DhariwalUNet,
    "unet2d": UNet2D,
    "unet2d_condition": UNet2DCondition,
    "v_diffusion": VDiffusionUNet,
    "pd_unet": PDUNet,
}


CODECS = {"kl": AutoencoderKL, "vq": VQModel}
TEXT_ENCODERS = {"clip": CLIPText, "class": ClassEmbedder}


def create_network(name: str, settings: Mapping[str, Any], **extra) -> nn.Module:
    """The network `name` with the entries of `settings` that it has (config.model), and `extra` ones that win.

    Raises ValueError for an unknown name or a value the network refuses.
    """
    if name not in NETWORKS:
        raise ValueError(f"config.model.name={name!r} is unknown; choose one of {sorted(NETWORKS)}.")
    return _build(NETWORKS[name], {**settings, **extra})


def create_codec(settings: Mapping[str, Any], **extra) -> AutoencoderKL | VQModel:
    """The codec of config.latent, and `extra` settings that win. Raises ValueError for an unknown kind or value."""
    kind = settings["kind"]
    if kind not in CODECS:
        raise ValueError(f"config.latent.kind={kind!r} names no codec; choose one of {sorted(CODECS)}.")
    return _build(CODECS[kind], {**settings, **extra})


def create_text_encoder(settings: Mapping[str, Any], **extra) -> CLIPText | ClassEmbedder:
    """The encoder of config.latent.text, and `extra` settings that win; raises ValueError as `create_codec`."""
    kind = settings["kind"]
    if kind not in TEXT_ENCODERS:
        raise ValueError(f"config.latent.text.kind={kind!r} names no encoder; choose one of {sorted(TEXT_ENCODERS)}.")
    return _build(TEXT_ENCODERS[kind], {**settings, **extra})


def _build(module: type[nn.Module], settings: Mapping[str, Any]) -> Any:
    accepted = set(inspect.signature(module).parameters) - {"parent", "name"}
    values = {key: value for key, value in settings.items() if key in accepted}
    # Lists come from configs and JSON; modules must be hashable.
    return module(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


class Structure(NamedTuple):
    """What a weight file has to fit.

    Attributes:
      shapes: the parameter tree, as ShapeDtypeStructs.
      order: names of the top-level modules in the order they are called, as PyTorch's `all_modules` numbers them.
        Parameter-free modules hold a number too, except the resampling of image pyramids.
    """

    shapes: dict
    order: list[str]


def structure(network: nn.Module, image_shape: tuple[int, int, int]) -> Structure:
    """The parameters and modules of a score network; nothing is computed."""
    order: list[str] = []

    def record(next_call, args, kwargs, context):
        module = context.module
        is_pyramid = isinstance(module, Upsample | Downsample) and module.pyramid
        if len(module.path) == 1 and context.method_name == "__call__" and not is_pyramid:
            order.append(module.name)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        return Structure(param_shapes(network, image_shape), order)


def param_shapes(network: nn.Module, image_shape: tuple[int, int, int]) -> dict:
    """The parameter tree the network expects, as ShapeDtypeStructs; nothing is computed."""
    copies = getattr(network, "num_times", 1)  # a network that mixes times sees as many of each image
    x = jax.ShapeDtypeStruct((copies, *image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((copies,), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), x, labels)["params"]


def codec_shapes(codec: AutoencoderKL | VQModel) -> dict:
    """The parameter tree that a codec expects, as ShapeDtypeStructs; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, codec.factor, codec.factor, codec.image_channels), jnp.float32)
    return jax.eval_shape(codec.init, jax.random.key(0), x)["params"]


def text_shapes(encoder: CLIPText | ClassEmbedder) -> dict:
    """The parameter tree that an encoder of texts or classes expects, as ShapeDtypeStructs; nothing is computed."""
    tokens = jax.ShapeDtypeStruct((1,) if isinstance(encoder, ClassEmbedder) else (1, 1), jnp.int32)
    return jax.eval_shape(encoder.init, jax.random.key(0), tokens)["params"]


def image_shapes(encoder: CLIPImage) -> dict:
    """The parameter tree that an encoder of images expects, as ShapeDtypeStructs; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, encoder.image_size, encoder.image_size, 3), jnp.float32)
    return jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]
