"""What a latent model is told besides the noise: CLIP's encoders of text and of images, and a table of classes.

CLIP (Radford et al. 2021) are two transformers that map a text and its picture to near vectors. Stable Diffusion looks
at the hidden states of the text's [b, n, d]; guidance by CLIP compares `projected` of both. Modules are named as in
transformers' state dicts with "_" for "." and without "text_model." or "vision_model." (`checkpoints.latent_names`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from array_types import Context, Image, Labels, Tokens, Vectors
from models.layers import attend_positions

TokenNumbers = Int[Array, "b n"]
# Of the images that CLIP was trained on, in [0, 1]: an image x goes in as (x - mean)/std.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
OLD_EOS = 2  # what files from before 2023 call the token of the end, by mistake


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), as the first CLIP networks have it."""
    return x * nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


class CLIPOutput(NamedTuple):
    """What an encoder says of a text or an image."""

    hidden: Tokens  # [b, n, width]; of a text behind its last normalisation
    pooled: Vectors  # [b, width]: one vector for the whole
    projected: Vectors | None  # [b, projection_dim]: what texts and images share; None without a projection


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer network on [b, n, c], each behind a normalisation and added to its input."""

    heads: int
    mlp_width: int
    act: str
    causal: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        b, n, c = x.shape
        h = nn.LayerNorm(1e-5, dtype=self.dtype, name="layer_norm1")(x)
        q, k, v = (
            self._dense(f"self_attn_{name}_proj", c)(h).reshape(b, n, self.heads, c // self.heads) for name in "qkv"
        )
        h = attend_positions(q, k, v, self.causal).reshape(b, n, c)
        x = x + self._dense("self_attn_out_proj", c)(h)
        h = nn.LayerNorm(1e-5, dtype=self.dtype, name="layer_norm2")(x)
        return x + self._dense("mlp_fc2", c)(ACTIVATIONS[self.act](self._dense("mlp_fc1", self.mlp_width)(h)))

    def _dense(self, name: str, features: int) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, name=name)


class _Transformer(nn.Module):
    """The settings that both encoders share; those of texts have the names of config.latent.text."""

    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    act: str = "quick_gelu"
    projection_dim: int = 0  # 0: no projection
    dtype: Any = None

    def __post_init__(self):
        if self.act not in ACTIVATIONS:
            raise ValueError(f"config.latent.text.act={self.act!r} is unknown; choose one of {sorted(ACTIVATIONS)}.")
        if self.width % self.num_heads:
            raise ValueError(
                f"config.latent.text.num_heads={self.num_heads} does not divide config.latent.text.width={self.width}."
            )
        super().__post_init__()

    def _layers(self, x: Tokens, causal: bool) -> Tokens:
        x = x if self.dtype is None else x.astype(self.dtype)
        for i in range(self.num_layers):
            name = f"encoder_layers_{i}"
            x = EncoderLayer(self.num_heads, self.mlp_width, self.act, causal, self.dtype, name=name)(x)
        return x

    def _project(self, name: str, pooled: Vectors) -> Vectors | None:
        return nn.Dense(self.projection_dim, use_bias=False, name=name)(pooled) if self.projection_dim else None


class CLIPText(_Transformer):
    """tokens [b, n] of integers, n <= max_tokens -> `CLIPOutput`; a token sees those before it only.

    `pooled` is the state at the first `eos_token_id`, or at the token of the highest number where it is `OLD_EOS`.
    """

    vocab_size: int = 49408
    max_tokens: int = 77
    eos_token_id: int = 49407

    @nn.compact
    def __call__(self, tokens: TokenNumbers) -> CLIPOutput:
        n = tokens.shape[1]
        if n > self.max_tokens:
            raise ValueError(f"A text of {n} tokens; this encoder reads {self.max_tokens}. Cut it.")
        embedded = nn.Embed(self.vocab_size, self.width, name="embeddings_token_embedding")(tokens)
        places = nn.Embed(self.max_tokens, self.width, name="embeddings_position_embedding")(jnp.arange(n))
        h = self._layers(embedded + places[None], causal=True)
        hidden = nn.LayerNorm(1e-5, name="final_layer_norm")(h.astype(embedded.dtype))
        end = tokens if self.eos_token_id == OLD_EOS else tokens == self.eos_token_id
        pooled = hidden[jnp.arange(len(tokens)), jnp.argmax(end, axis=1)]
        return CLIPOutput(hidden, pooled, self._project("text_projection", pooled))


class CLIPImage(_Transformer):
    """Images [b, image_size, image_size, 3] as (x - IMAGE_MEAN)/IMAGE_STD, x in [0, 1] -> `CLIPOutput`.

    A vision transformer: patches and a learned vector before them, whose last state is `pooled`.
    """

    image_size: int = 224
    patch_size: int = 32

    @nn.compact
    def __call__(self, images: Image) -> CLIPOutput:
        b, height, width, _ = images.shape
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"CLIP's image encoder was given {height} x {width} pixels; it reads {self.image_size} x "
                f"{self.image_size}. Resize the images."
            )
        size, strides = (self.patch_size,) * 2, (self.patch_size,) * 2
        patches = nn.Conv(self.width, size, strides, "VALID", use_bias=False, name="embeddings_patch_embedding")(images)
        patches = patches.reshape(b, -1, self.width)
        first = self.param("embeddings_class_embedding", nn.initializers.normal(0.02), (self.width,))
        h = jnp.concatenate([jnp.broadcast_to(first[None, None], (b, 1, self.width)).astype(patches.dtype), patches], 1)
        places = nn.Embed(h.shape[1], self.width, name="embeddings_position_embedding")(jnp.arange(h.shape[1]))
        h = nn.LayerNorm(1e-5, name="pre_layrnorm")(h + places[None])  # spelt as in the files
        hidden = self._layers(h, causal=False).astype(h.dtype)
        pooled = nn.LayerNorm(1e-5, name="post_layernorm")(hidden[:, 0])
        return CLIPOutput(hidden, pooled, self._project("visual_projection", pooled))


class ClassEmbedder(nn.Module):
    """Classes [b] of integers -> context [b, 1, width]: LDM's table, whose last entry stands for no class."""

    num_classes: int = 1001
    width: int = 512

    @nn.compact
    def __call__(self, classes: Labels) -> Context:
        return nn.Embed(self.num_classes, self.width, name="embedding")(classes)[:, None]
