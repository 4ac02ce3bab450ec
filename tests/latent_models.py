"""A small latent model with prompts, written down: a network that reads a context, a codec, a text network."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from builders.model import Model
from builders.prompts import TextNetwork
from configs import base as base_config
from data import clip_tokens
from models.denoiser import Denoiser
from models.latent import Codec
from sde_lib import DiscreteVPSDE

SD = DiscreteVPSDE("scaled_linear", 0.85, 12.0)  # betas of 0.00085 to 0.012
CHAIN = ("abcdefghijklmnopqrstuvwxyz", [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("Ã", "¼")])


def network(params, x, labels, context):
    """Anything smooth that depends on all it is told."""
    said = context.mean(axis=(1, 2))[:, None, None, None]
    return params * jnp.tanh(0.8 * x + said) + 0.1 * jnp.sin(labels / 300)[:, None, None, None]


def encode(params, images):
    b, h, w, _ = images.shape
    small = images.reshape(b, h // 2, 2, w // 2, 2, 3).mean((2, 4))
    return params * jnp.concatenate([small, small.mean(-1, keepdims=True)], -1)


def decode(params, z):
    """The inverse of `encode` on images of 2 x 2 blocks."""
    return jnp.repeat(jnp.repeat(z[..., :3] / params, 2, axis=1), 2, axis=2)


def read(params, ids):
    """Every token is a row of the table."""
    return jnp.sin(params * ids[..., None].astype(jnp.float32) * jnp.arange(1.0, 4.0)[None, None])


def read_class(params, classes):
    return read(params, classes[:, None])


def write_tokenizer(folder: Path, pad: str = "") -> Path:
    """vocab.json and merges.txt that know every byte and a few words."""
    folder.mkdir(exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in CHAIN[1])]
    tokens += [clip_tokens.START, clip_tokens.END]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    merges = "\n".join(" ".join(pair) for pair in CHAIN[1])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    if pad:
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    return folder


def model_of(tokenizer: Path | None, guidance=(), kind="clip", predicts="eps", **sampling) -> Model:
    """Latents of 4 x 4 x 4, images of 8 x 8 x 3; prompts (kind "clip"), classes as context ("class") or neither."""
    config = base_config.get_config()
    config.sde.update(name="discretevpsde", schedule="scaled_linear", beta_min=0.85, beta_max=12.0)
    config.model.update(name="own", predicts=predicts)
    config.data.update(image_size=4, num_channels=4, centered=True)
    config.latent.update(kind="kl", block_out_channels=(1, 1), scale_factor=0.5)
    config.latent.text.update(kind=kind, max_tokens=12, num_classes=6)
    config.sampling.update(num_steps=6, microbatch=2, method="ddim")
    config.sampling.update(sampling)
    config.guidance.update(dict(guidance))
    denoiser = Denoiser(jnp.float32(0.7), network, SD, predicts, "index")
    codec = Codec(jnp.float32(1.5), encode, decode, 2, scale_factor=0.5)
    reads = {"clip": read, "class": read_class}.get(kind)
    text = TextNetwork(kind, reads, jnp.float32(0.3), str(tokenizer or ""), 12) if reads else None
    if text is None:
        denoiser = Denoiser(denoiser.params, _alone, SD, predicts, "index")
    return Model(denoiser, config, "0" * 64, codec, text)


def _alone(params, x, labels):
    return network(params, x, labels, jnp.zeros_like(x[:, :1, :1, 0]))


def noise(keys, shape=(4, 4, 4)) -> np.ndarray:
    return np.stack([np.asarray(jax.random.normal(key, shape, jnp.float32)) for key in keys])
