"""The architecture of a latent model in one file (`checkpoints.compvis`), read off its tensors as far as they show it.

Widths, levels, depths, the context, the codec, the text encoder and the betas are in the file. Not in it, and assumed
as the published models have it, are the number of attention heads, the groups of normalisations, the side of the
training images, and whether the output is eps or v; `translate` says each in words. `configs/latent/` holds the
published models in full.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import base

Shapes = Mapping[str, tuple[int, ...]]  # of a part's tensors, under diffusers' names
# Context width -> heads of the published models with it; others have heads of 64 channels.
_HEADS = {512: 1, 768: 8, 1280: 8}
_OPEN_CLIP = 1024  # width of the context of Stable Diffusion 2
_EPS_STEP = 875_000  # training step of its base model, which predicts eps at 512 pixels; its others predict v at 768

_CHAIN = ("schedule", "beta_min", "beta_max", "num_scales")
# Stable Diffusion's betas, times their number, LDM's and DDPM's: what a table in half precision is taken for.
_PUBLISHED = (("scaled_linear", 0.85, 12.0), ("scaled_linear", 1.5, 19.5), ("linear", 0.1, 20.0))


def translate(
    unet: Shapes, codec: Shapes, text: Shapes, betas: np.ndarray | None, scale: float | None, step: int | None
) -> tuple[ConfigDict, list[str]]:
    """(a full config, what was assumed, one sentence each).

    Args:
      unet, codec, text: shapes under the names of diffusers and transformers (`checkpoints.compvis_names`).
      betas: of the chain; None takes those of Stable Diffusion.
      scale: of the latents, where the file has it.
      step: of training, which tells the models of Stable Diffusion 2 apart.
    """
    config, assumed = base.get_config(), []
    model, context = _unet(unet)
    heads = _HEADS.get(context, 0)
    widths = [round(model["nf"] * multiplier) for multiplier in model["ch_mult"]]
    model["attention_head_dim"] = heads or tuple(max(1, width // 64) for width in widths)
    assumed.append(f"{heads} attention heads" if heads else "attention heads of 64 channels")
    second = context == _OPEN_CLIP and step != _EPS_STEP
    with config.unlocked():
        config.model.update(model, predicts="v" if second else "eps", continuous=False)
    assumed.append("the output is v" if second else "the output is eps")
    side = 96 if second else 64
    classes = unet.get("class_embedding.weight", (0,))[0]
    config.data.update(image_size=side, num_channels=unet["conv_in.weight"][1], num_classes=classes, centered=True)
    assumed.append(f"latents of {side} x {side}")
    config.sde.update(name="discretevpsde", **_chain(betas))
    if betas is None:
        assumed.append("the betas of Stable Diffusion")
    config.sampling.update(method="ddim", num_steps=50)
    if codec:
        config.latent.update(_codec(codec))
        config.latent.scale_factor = scale or (0.18215 if config.latent.kind == "kl" else 1.0)
        if scale is None:
            assumed.append(f"latents times {config.latent.scale_factor:g}")
    if text:
        config.latent.text.update(_text(text, context))
    return config, assumed


def _unet(shapes: Shapes) -> tuple[dict[str, Any], int]:
    """(settings of `models.unet2d_condition.UNet2DCondition`, width of the context)."""
    levels = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"down_blocks\.(\d+)\.", name)))
    layers = [_count(shapes, rf"down_blocks\.{level}\.resnets\.(\d+)\.") for level in range(levels)]
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    down = [
        _count(shapes, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.") for level in range(levels)
    ]
    up = [_count(shapes, rf"up_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\.") for i in range(levels)]
    context = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    middle = _count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    depths = [depth or middle for depth in down]
    depths[-1] = middle or depths[-1]
    model = dict(
        name="unet2d_condition",
        nf=shapes["conv_in.weight"][0],
        ch_mult=tuple(width / shapes["conv_in.weight"][0] for width in widths),
        num_res_blocks=_one(layers),
        out_channels=shapes["conv_out.weight"][0],
        down_block_types=tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in down),
        up_block_types=tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in up),
        mid_block_type="UNetMidBlock2DCrossAttn",
        transformer_layers_per_block=_one(depths),
        cross_attention_dim=context,
        norm_num_groups=math.gcd(32, *widths),
        embedding_type="positional",
        dropout=0.0,
    )
    return model, context


def _codec(shapes: Shapes) -> dict[str, Any]:
    """Entries of config.latent but for the scale."""
    levels = 1 + max(int(found[1]) for name in shapes if (found := re.match(r"encoder\.down_blocks\.(\d+)\.", name)))
    widths = tuple(shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels))
    down = [f"encoder.down_blocks.{level}.attentions.0.to_q.weight" in shapes for level in range(levels)]
    up = [f"decoder.up_blocks.{level}.attentions.0.to_q.weight" in shapes for level in range(levels)]
    book = shapes.get("quantize.embedding.weight")
    return dict(
        kind="kl" if book is None else "vq",
        image_channels=shapes["encoder.conv_in.weight"][1],
        channels=shapes["decoder.conv_in.weight"][1],
        block_out_channels=widths,
        layers_per_block=_count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        down_block_types=tuple("AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D" for attends in down),
        up_block_types=tuple("AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D" for attends in up),
        norm_num_groups=math.gcd(32, *widths),
        mid_attention="encoder.mid_block.attentions.0.to_q.weight" in shapes,
        quant_conv="quant_conv.weight" in shapes,
        post_quant_conv="post_quant_conv.weight" in shapes,
        **({} if book is None else {"num_vq_embeddings": book[0], "vq_embed_dim": book[1]}),
    )


def _text(shapes: Shapes, context: int) -> dict[str, Any]:
    """Entries of config.latent.text."""
    if "embedding.weight" in shapes:
        return dict(kind="class", num_classes=shapes["embedding.weight"][0], width=shapes["embedding.weight"][1])
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return dict(
        kind="clip",
        vocab_size=vocabulary,
        max_tokens=shapes["embeddings.position_embedding.weight"][0],
        width=width,
        num_layers=_count(shapes, r"encoder\.layers\.(\d+)\."),
        num_heads=max(1, width // 64),
        mlp_width=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        act="gelu" if context == _OPEN_CLIP else "quick_gelu",
        eos_token_id=vocabulary - 1,
    )


def _chain(betas: np.ndarray | None) -> dict[str, Any]:
    """config.sde of a table of betas, even in themselves or in their roots; half a table's digits are enough."""
    if betas is None:
        return dict(zip(_CHAIN, (*_PUBLISHED[0], 1000), strict=True))
    tolerance, digits = (5e-3, 3) if betas.dtype.itemsize < 4 else (1e-4, 6)
    betas = np.asarray(betas, np.float64)
    count = len(betas)
    first, last = (float(f"{count * end:.{digits}g}") for end in (betas[0], betas[-1]))
    for schedule, low, high in (*_PUBLISHED, ("scaled_linear", first, last), ("linear", first, last)):
        power = 2 if schedule == "scaled_linear" else 1
        even = np.linspace((low / count) ** (1 / power), (high / count) ** (1 / power), count)
        if np.allclose(even**power, betas, rtol=tolerance):
            return dict(zip(_CHAIN, (schedule, low, high, count), strict=True))
    raise ValueError(
        f"The file's {count} betas, {betas[0]:g} to {betas[-1]:g}, are even neither in themselves nor in their roots; "
        "its chain is not supported."
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers the names have at the group of the pattern."""
    return len({found[1] for name in shapes if (found := re.match(pattern, name))})


def _one(values: Sequence[int]) -> Any:
    """The one value of all levels, or each level's own."""
    return values[0] if len(set(values)) == 1 else tuple(values)
