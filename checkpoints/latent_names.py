"""Names of the parts of a latent model, in every spelling that files have, as diffusers and transformers write them.

`part_names` is for what the readers call `extra["parts"]`; `checkpoints.names.flax_names_dotted` then carries them
to a network. Matrices are kept by some files as 1x1 convolutions; `checkpoints.fitting.fit` takes either.
"""

import re
from collections.abc import Mapping

import numpy as np

from checkpoints import compvis_names
from checkpoints.base import Part, Tensors
from checkpoints.names import diffusers_names

_POSITIONS = "position_ids"  # 0, 1, 2, ...: transformers stored them once


def part_names(part: Part, name: str) -> Tensors:
    """The tensors of the part "vae" or "text_encoder", from a folder of diffusers or from CompVis' file.

    Raises ValueError for a text encoder that is neither CLIP nor a table of classes.
    """
    tensors = part.tensors
    if name == "vae":
        compvis = any(re.match(r"(en|de)coder\.(down|up|mid)\.", key) for key in tensors)
        return compvis_names.codec_names(tensors) if compvis else diffusers_names(tensors)
    if any(key.startswith("model.transformer.resblocks.") for key in tensors):
        kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("model.visual.")}
        return compvis_names.open_clip_names({key.removeprefix("model."): tensor for key, tensor in kept.items()})
    if "embedding.weight" in tensors:
        return dict(tensors)
    found = text_names({key.removeprefix("transformer."): tensor for key, tensor in tensors.items()})
    if "embeddings.token_embedding.weight" not in found:
        raise ValueError(
            f"{part.path}: its text encoder (tensors {', '.join(list(tensors)[:3])}, ...) is neither CLIP nor a table "
            "of classes; only those are supported."
        )
    return found


def text_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """A CLIP text model of transformers, alone or beside an image model, under the paths of `models.clip.CLIPText`."""
    return _clip(tensors, "text_model.", ("vision_model.", "visual_projection.", "logit_scale"))


def image_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """A CLIP image model of transformers, alone or beside a text model, under the paths of `models.clip.CLIPImage`."""
    return _clip(tensors, "vision_model.", ("text_model.", "text_projection.", "logit_scale"))


def _clip(tensors: Mapping[str, np.ndarray], prefix: str, others: tuple[str, ...]) -> Tensors:
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}
    return {name.removeprefix(prefix): t for name, t in kept.items() if not name.endswith(_POSITIONS)}
