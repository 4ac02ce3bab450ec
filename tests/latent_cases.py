"""Tiny latent-diffusion networks recorded by diffusers and transformers (tests/goldens/latent/README.md)."""

import base64
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import golden_folder

from benchmarks.peers.latent_goldens import drawn
from checkpoints import fitting, names

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def cases():
    return json.loads((golden_folder("latent") / "networks.json").read_text())


def config_of(case, **changes):
    return {"_class_name": cases()[case]["class"], **cases()[case]["config"], **changes}


def tensors_of(case):
    return {name: drawn(name, shape) for name, shape in cases()[case]["shapes"].items()}


def output_of(case, name):
    """Every second value in the order of the library's axes."""
    return np.frombuffer(base64.b64decode(cases()[case]["outputs"][name]), "<f4")


def params_of(expected, tensors, source="case"):
    shapes = fitting.shapes(expected)
    fitted = fitting.fit(names.flax_names_dotted(tensors, shapes), shapes, source)
    return jax.tree.map(jnp.asarray, fitted)


def drawn_image(name, *shape):
    """The input of this name in NHWC."""
    return jnp.asarray(np.moveaxis(drawn(name, shape), 1, -1))


def relative_error(ours, theirs):
    """Of an output [b, h, w, c] or [b, n, d] against the recorded values."""
    ours = np.moveaxis(np.asarray(ours), -1, 1) if np.ndim(ours) == 4 else np.asarray(ours)
    assert ours.dtype == np.float32
    assert len(ours.ravel()[::2]) == len(theirs)
    return np.abs(ours.ravel()[::2] - theirs).max() / np.abs(theirs).max()


def compvis_unet(case):
    """The tensors of a recorded U-Net under CompVis' names, numbered as its program builds it."""
    config, tensors = cases()[case]["config"], tensors_of(case)
    levels = len(config["block_out_channels"])
    layers = config["layers_per_block"]
    layers = [layers] * levels if isinstance(layers, int) else layers
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "class_embedding": "label_emb",
    }
    number = 1
    for level in range(levels):
        for layer in range(layers[level]):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for level in range(levels):
        for layer in range(layers[levels - 1 - level] + 1):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == layers[levels - 1 - level] and level < levels - 1:
                attends = config["up_block_types"][level].startswith("CrossAttn")
                places[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{number}.{1 + attends}"
            number += 1
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    found = {}
    for name, tensor in tensors.items():
        place = max((place for place in places if name.startswith(f"{place}.")), key=len)
        rest = name.removeprefix(f"{place}.")
        if ".resnets." in place:
            word, leaf = rest.split(".")
            rest = f"{inner[word]}.{leaf}"
        found[f"{places[place]}.{rest}"] = tensor
    return found


def compvis_codec(case):
    """The tensors of a recorded codec under CompVis' names: matrices of attention as 1x1 convolutions, and a loss."""
    levels = len(cases()[case]["config"]["block_out_channels"])
    words = [("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2")]
    words += [
        ("mid_block.attentions.0", "mid.attn_1"),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
    ]
    words += [
        (".resnets.", ".block."),
        (".attentions.", ".attn."),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ]
    words += [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
    found = {
        "loss.logvar": np.zeros((), np.float32),
        "loss.discriminator.main.0.weight": np.ones((2, 3, 4, 4), np.float32),
    }
    for name, tensor in tensors_of(case).items():
        for level in range(levels):
            name = name.replace(f"down_blocks.{level}.", f"down.{level}.")
            name = name.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
        attention = ".attentions." in name and tensor.ndim == 2
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        found[name] = tensor[:, :, None, None] if attention else tensor
    return found


def open_clip(case):
    """The tensors of a recorded text model as open_clip names them, with one layer more at the end."""
    words = [
        ("text_model.", ""),
        ("encoder.layers", "transformer.resblocks"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
    ]
    words += [
        ("self_attn.", "attn."),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("final_layer_norm", "ln_final"),
    ]
    words += [("embeddings.token_embedding", "token_embedding")]
    words += [("embeddings.position_embedding.weight", "positional_embedding")]
    found = {"text_projection": np.ones((8, 6), np.float32), "logit_scale": np.ones((), np.float32)}
    for name, tensor in tensors_of(case).items():
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        found[name] = tensor
    for layer in range(cases()[case]["config"]["num_hidden_layers"]):
        for leaf in ("weight", "bias"):
            stem = f"transformer.resblocks.{layer}.attn."
            parts = [found.pop(f"{stem}{letter}_proj.{leaf}") for letter in "qkv"]
            found[f"{stem}in_proj_{leaf}"] = np.concatenate(parts)
    last = {name: tensor for name, tensor in found.items() if ".resblocks.1." in name}
    return found | {name.replace(".resblocks.1.", ".resblocks.2."): tensor for name, tensor in last.items()}
