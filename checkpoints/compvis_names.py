"""CompVis' names of the parts of a latent model, as diffusers and transformers name them.

CompVis numbers the blocks of its U-Net in the order in which they are called; which of them begin a new level is read
off the names themselves, so that any number of levels, blocks and transformers is understood. Inside a block only words
differ, and the layout not at all (matrices may be 1x1 convolutions, see `checkpoints.latent_names`).
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from checkpoints.base import Tensors

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_CODEC = {
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
}
_CODEC_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPEN_CLIP = {
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "ln_final": "final_layer_norm",
    "attn": "self_attn",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
}


def unet_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The U-Net with spatial transformers, "input_blocks.1.1.proj_in.weight" -> "down_blocks.0.attentions.0...".

    Raises ValueError for a block that is neither a residual block, a transformer nor a convolution that resamples.
    """
    places = {**_UNET, **dict(_down_blocks(tensors)), **dict(_up_blocks(tensors))}
    flat = {}
    for name, tensor in tensors.items():
        place = next((place for place in _prefixes(name) if place in places), None)
        if place is None:
            raise ValueError(f"tensor {name!r} has no place in a CompVis U-Net with spatial transformers.")
        flat[_words(places[place] + name.removeprefix(place), _RESNET)] = tensor
    return flat


def codec_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """A first stage, "decoder.up.3.block.0.nin_shortcut.weight" -> "decoder.up_blocks.0.resnets.0.conv_shortcut...".

    What only its training used (`loss`, a moving average) is left out.
    """
    levels = 1 + max(
        (int(found[1]) for name in tensors if (found := re.match(r"decoder\.up\.(\d+)\.", name))), default=0
    )
    flat = {}
    for name, tensor in tensors.items():
        if name.startswith(("loss.", "model_ema.")):
            continue
        attends = re.search(r"\.attn(_1|\.\d+)\.(\w+)\.", name)
        if attends:
            name = name.replace(f"{attends[1]}.{attends[2]}.", f"{attends[1]}.{_CODEC_ATTENTION[attends[2]]}.")
        name = re.sub(r"^encoder\.down\.(\d+)", r"encoder.down_blocks.\1", name)
        name = re.sub(r"^decoder\.up\.(\d+)", lambda old: f"decoder.up_blocks.{levels - 1 - int(old[1])}", name)
        name = re.sub(r"(?<=\d)\.block\.(?=\d)", ".resnets.", name)
        name = re.sub(r"(?<=\d)\.attn\.(?=\d)", ".attentions.", name)
        flat[_words(name, _CODEC)] = tensor
    return flat


def open_clip_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """open_clip's text tower, of which Stable Diffusion 2 looks at the last layer but one: the last is left out."""
    layers = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"transformer\.resblocks\.(\d+)\.", name)))
    flat: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(f"transformer.resblocks.{layers - 1}.") or name in (
            "text_projection",
            "logit_scale",
            "attn_mask",
        ):
            continue
        if "attn.in_proj_" in name:
            stem, leaf = _words(name, _OPEN_CLIP).split("in_proj_")
            parts = zip("qkv", np.split(tensor, 3), strict=True)
            flat |= {f"{stem}{letter}_proj.{leaf}": part for letter, part in parts}
        else:
            flat[_words(name, _OPEN_CLIP)] = tensor
    return flat


def _down_blocks(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """("input_blocks.4.1", "down_blocks.1.attentions.0") and so on, in the order of the numbers."""
    level = layer = 0
    for block in _numbered(tensors, "input_blocks")[1:]:
        if f"{block}.0.op.weight" in tensors:
            yield f"{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            level, layer = level + 1, 0
        else:
            yield f"{block}.0", f"down_blocks.{level}.resnets.{layer}"
            yield f"{block}.1", f"down_blocks.{level}.attentions.{layer}"
            layer += 1


def _up_blocks(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    level = layer = 0
    for block in _numbered(tensors, "output_blocks"):
        yield f"{block}.0", f"up_blocks.{level}.resnets.{layer}"
        up = next((f"{block}.{i}" for i in (1, 2) if f"{block}.{i}.conv.weight" in tensors), None)
        if up != f"{block}.1":
            yield f"{block}.1", f"up_blocks.{level}.attentions.{layer}"
        layer += 1
        if up is not None:
            yield up, f"up_blocks.{level}.upsamplers.0"
            level, layer = level + 1, 0


def _numbered(tensors: Mapping[str, np.ndarray], kind: str) -> list[str]:
    numbers = {int(name.split(".")[1]) for name in tensors if name.startswith(f"{kind}.")}
    return [f"{kind}.{number}" for number in sorted(numbers)]


def _prefixes(name: str) -> Iterator[str]:
    """The name's beginnings at its dots, the longest first."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:length])


def _words(name: str, table: Mapping[str, str]) -> str:
    """`name` with the whole words (and runs of words) of the table replaced."""
    pattern = "|".join(re.escape(old) for old in sorted(table, key=len, reverse=True))
    return re.sub(rf"(?<![\w])({pattern})(?![\w])", lambda old: table[old[0]], name)
