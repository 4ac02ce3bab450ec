"""Names of the parts of a latent model, in every spelling that files have, as diffusers and transformers write them.

`checkpoints.names.flax_names_dotted` then carries them to a network. Matrices are kept by some files as 1x1
convolutions; `checkpoints.fitting.fit` takes either.
"""

from collections.abc import Mapping

import numpy as np

from checkpoints.base import Tensors

_POSITIONS = "position_ids"  # 0, 1, 2, ...: transformers stored them once


def text_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """A CLIP text model of transformers, alone or beside an image model, under the paths of `models.clip.CLIPText`."""
    return _clip(tensors, "text_model.", ("vision_model.", "visual_projection.", "logit_scale"))


def image_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """A CLIP image model of transformers, alone or beside a text model, under the paths of `models.clip.CLIPImage`."""
    return _clip(tensors, "vision_model.", ("text_model.", "text_projection.", "logit_scale"))


def _clip(tensors: Mapping[str, np.ndarray], prefix: str, others: tuple[str, ...]) -> Tensors:
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}
    return {name.removeprefix(prefix): t for name, t in kept.items() if not name.endswith(_POSITIONS)}
