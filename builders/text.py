"""A user's image and text encoder -> guidance by a prompt.

config.guidance.encoder names a function in a file, "path/my_clip.py:make_encoder". It takes no argument and returns an
object with three attributes: `embed_image`, a function of images [n, resolution, resolution, c] in the model's data
range, in JAX, to embeddings [n, d]; `embed_text`, a function of a string to one embedding [d]; and `resolution`.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sampling.text_guidance import TextPrompt, crops


def create_prompt(guidance: ConfigDict, shape: tuple[int, int, int]) -> TextPrompt:
    """log p(prompt | image) of config.guidance. Raises ValueError or FileNotFoundError about what is missing."""
    if not guidance.prompt:
        raise ValueError("config.guidance.kind='text' needs config.guidance.prompt, a text.")
    if guidance.crops < 1:
        raise ValueError(f"config.guidance.crops={guidance.crops} must be at least 1.")
    encoder = load_encoder(guidance.encoder)
    text = jnp.asarray(encoder.embed_text(guidance.prompt), jnp.float32).reshape(1, -1)
    chosen = crops(shape, guidance.crops)
    return TextPrompt(jax.tree_util.Partial(encoder.embed_image), text, chosen, int(encoder.resolution))


def load_encoder(spec: str) -> Any:
    """Runs the user's file and calls the function named behind the colon."""
    file, _, name = spec.partition(":")
    if not name or not Path(file).is_file():
        raise FileNotFoundError(
            f"config.guidance.encoder={spec!r} names no function in a file; write path/my_clip.py:make_encoder (see "
            "builders/text.py for what it returns)."
        )
    found = importlib.util.spec_from_file_location("user_encoder", file)
    if found is None or found.loader is None:
        raise ValueError(f"config.guidance.encoder={spec!r}: {file} is no Python file.")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    encoder = getattr(module, name)()
    missing = [part for part in ("embed_image", "embed_text", "resolution") if not hasattr(encoder, part)]
    if missing:
        raise ValueError(f"config.guidance.encoder={spec!r} returns an object without {', '.join(missing)}.")
    return encoder
