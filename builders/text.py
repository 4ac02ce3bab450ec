"""A user's image and text encoder -> guidance by a prompt.

config.guidance.encoder is the folder of a CLIP model as transformers writes it (config.json with text_config and
vision_config, weights, and vocab.json with merges.txt), or names a function in a file, "path/my_clip.py:make_encoder".
That takes no argument and returns an object with three attributes: `embed_image`, a function of images
[n, resolution, resolution, c] in the model's data range, in JAX, to embeddings [n, d]; `embed_text`, a function of a
string to one embedding [d]; and `resolution`.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from array_types import Image
from builders import latent_parts
from data import clip_tokens
from models.clip import IMAGE_MEAN, IMAGE_STD, CLIPImage, CLIPText
from sampling.text_guidance import TextPrompt, crops


def create_prompt(
    guidance: ConfigDict, shape: tuple[int, int, int], data_range: tuple[float, float] = (-1.0, 1.0)
) -> TextPrompt:
    """log p(prompt | image) of config.guidance. Raises ValueError or FileNotFoundError about what is missing."""
    if not guidance.prompt:
        raise ValueError("config.guidance.kind='text' needs config.guidance.prompt, a text.")
    if guidance.crops < 1:
        raise ValueError(f"config.guidance.crops={guidance.crops} must be at least 1.")
    folder = Path(guidance.encoder)
    encoder = load_clip(folder, data_range) if folder.is_dir() else load_encoder(guidance.encoder)
    text = jnp.asarray(encoder.embed_text(guidance.prompt), jnp.float32).reshape(1, -1)
    chosen = crops(shape, guidance.crops)
    embed = encoder.embed_image
    embed = embed if isinstance(embed, jax.tree_util.Partial) else jax.tree_util.Partial(embed)
    return TextPrompt(embed, text, chosen, int(encoder.resolution))


@dataclasses.dataclass(frozen=True)
class Clip:
    """The two encoders of a CLIP folder, for images in `data_range`."""

    text: CLIPText
    text_params: Any
    image: CLIPImage
    image_params: Any
    tokenizer: clip_tokens.Tokenizer
    data_range: tuple[float, float]

    @property
    def resolution(self) -> int:
        return self.image.image_size

    def embed_text(self, text: str) -> jax.Array:
        tokens = self.tokenizer(text, self.text.max_tokens)
        if tokens.cut:
            raise ValueError(
                f"config.guidance.prompt is longer than the {self.text.max_tokens - 2} tokens that CLIP reads; shorten "
                f"it: {tokens.cut!r} would be cut off."
            )
        said: Any = self.text.apply({"params": self.text_params}, jnp.asarray([tokens.ids]))
        return said.projected[0]

    @property
    def embed_image(self) -> jax.tree_util.Partial:
        return jax.tree_util.Partial(_EmbedImage(self.image, self.data_range), self.image_params)


@dataclasses.dataclass(frozen=True)
class _EmbedImage:
    """`(params, images in the data range) -> embeddings`."""

    image: CLIPImage
    data_range: Sequence[float]

    def __call__(self, params: Any, images: Image) -> jax.Array:
        low, high = self.data_range
        mean, std = (jnp.asarray(value, images.dtype)[None, None, None] for value in (IMAGE_MEAN, IMAGE_STD))
        seen: Any = self.image.apply({"params": params}, ((images - low) / (high - low) - mean) / std)
        return seen.projected


def load_clip(folder: Path, data_range: tuple[float, float]) -> Clip:
    """The encoders in a folder of transformers' CLIPModel; FileNotFoundError or ValueError names the file at fault."""
    return Clip(*latent_parts.load_clip(folder), clip_tokens.read(folder), data_range)


def load_encoder(spec: str) -> Any:
    """Runs the user's file and calls the function named behind the colon."""
    file, _, name = spec.partition(":")
    if not name or not Path(file).is_file():
        raise FileNotFoundError(
            f"config.guidance.encoder={spec!r} names no function in a file; write path/my_clip.py:make_encoder (see "
            "builders/text.py for what it returns), or the folder of a CLIP model."
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
