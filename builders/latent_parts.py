"""The networks of a latent model beside the one that denoises: its codec, its text encoder, and CLIP for guidance."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

import models
from checkpoints import compvis_names, diffusers, fitting, latent_names, names
from checkpoints.base import Checkpoint, Tensors
from configs import compvis, diffusers_parts
from models.autoencoder import AutoencoderKL, VQModel
from models.clip import ClassEmbedder, CLIPImage, CLIPText


def infer_config(stored: Checkpoint) -> ConfigDict:
    """The config of CompVis' file, from its tensors; what had to be assumed is logged."""

    def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in tensors.items()}

    parts = {name: shapes(latent_names.part_names(part, name)) for name, part in stored.extra["parts"].items()}
    scale = stored.extra.get("scale_factor")
    config, assumed = compvis.translate(
        shapes(compvis_names.unet_names(stored.raw)),
        parts.get("vae", {}),
        parts.get("text_encoder", {}),
        stored.extra.get("betas"),
        None if scale is None else float(scale),
        stored.step,
    )
    logging.info(
        "%s does not say how its network was trained; assumed: %s. Where that is wrong, name one of configs/latent/.",
        stored.path,
        ", ".join(assumed),
    )
    return config


def load_codec(stored: Checkpoint, config: ConfigDict) -> tuple[AutoencoderKL | VQModel, Any]:
    """(module, parameters) of config.latent's codec. Raises ValueError where the file has none or another one."""
    module = models.create_codec(config.latent.to_dict())
    return module, _fit(stored, "vae", models.codec_shapes(module), "codec")


def load_text_encoder(stored: Checkpoint, config: ConfigDict) -> tuple[CLIPText | ClassEmbedder, Any]:
    """(module, parameters) of config.latent.text: CLIP's or a table of classes; raises as `load_codec`."""
    module = models.create_text_encoder(config.latent.text.to_dict())
    return module, _fit(stored, "text_encoder", models.text_shapes(module), "text encoder")


def load_clip(folder: str | Path) -> tuple[CLIPText, Any, CLIPImage, Any]:
    """(text encoder, parameters, image encoder, parameters) of a folder of transformers' `CLIPModel`.

    Raises FileNotFoundError or ValueError that names the file, key or tensor.
    """
    part = diffusers.read_part(Path(folder))
    settings = part.config or {}
    if not {"text_config", "vision_config"} <= set(settings):
        raise ValueError(f"{folder}/config.json has no text_config and vision_config; a whole CLIPModel is needed.")
    shared = {"projection_dim": settings.get("projection_dim", 512)}
    described = {"architectures": ["CLIPTextModelWithProjection"]}
    text_settings = diffusers_parts.text_encoder({**settings["text_config"], **shared, **described}, str(folder))
    image_settings = diffusers_parts.image_encoder({**settings["vision_config"], **shared}, str(folder))
    text, image = (
        CLIPText(**{key: value for key, value in text_settings.items() if key != "kind"}),
        CLIPImage(**image_settings),
    )
    text_params = _fitted(latent_names.text_names(part.tensors), models.text_shapes(text), str(folder))
    image_params = _fitted(latent_names.image_names(part.tensors), models.image_shapes(image), str(folder))
    return text, text_params, image, image_params


def _fit(stored: Checkpoint, name: str, expected: dict, what: str) -> Any:
    parts = stored.extra.get("parts", {})
    if name not in parts:
        raise ValueError(
            f"{stored.path} holds no {what}; a latent model needs its whole folder (with model_index.json), CompVis' "
            "file, or a file of this toolkit that has both."
        )
    source = f"{stored.path}, {what}"
    if stored.format == "native":  # under the names of our networks already
        return jax.tree.map(jnp.asarray, fitting.fit(parts[name].tensors, fitting.shapes(expected), source))
    return _fitted(latent_names.part_names(parts[name], name), expected, source)


def _fitted(tensors: Tensors, expected: dict, source: str) -> Any:
    shapes = fitting.shapes(expected)
    return jax.tree.map(jnp.asarray, fitting.fit(names.flax_names_dotted(tensors, shapes), shapes, source))
