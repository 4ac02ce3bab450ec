"""The architecture of a `.pt` student of the unofficial progressive-distillation program, as a config in our layout.

Such a file needs no config: {"G": state dict, "n_timesteps", "time_scale"} says how many steps the student takes, and
the shapes of the state dict say nearly all of the network. The rest is as published: 4 attention heads, images of 256
pixels whose channels are blue, green, red (`--config.model.num_heads`, `--config.data.image_size`).
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base


def translate(shapes: Mapping[str, tuple[int, ...]], steps: Mapping[str, Any], source: str) -> ConfigDict:
    """The config of a student, which is sampled by DDIM on all levels of its own chain.

    Args:
      shapes: of the tensors of the state dict, in PyTorch's layout.
      steps: n_timesteps and time_scale.
      source: the file, for messages.

    Raises: ValueError where the state dict is not of that U-Net.
    """
    blocks = _numbered(shapes, r"down\.(\d+)\.resblocks\.conv1\.weight")
    halvings = _numbered(shapes, r"down\.(\d+)\.0\.weight")
    if "down.0.weight" not in shapes or not blocks:
        raise ValueError(f"{source}: 'G' has no down.0.weight and down.1.resblocks.conv1.weight; another network.")
    nf, channels = shapes["down.0.weight"][:2]
    levels = [[number for number in blocks if before < number < after] for before, after in _spans(halvings, blocks)]
    if len({len(level) for level in levels}) != 1:
        raise ValueError(f"{source}: its levels have {[len(level) for level in levels]} residual blocks; unknown.")
    config = base.get_config()
    n = int(steps["n_timesteps"])
    config.sde.update(name="discretevpsde", schedule="cosine", num_scales=n, beta_max=float(min(20, n)))
    config.model.update(
        name="pd_unet",
        predicts="v",
        continuous=False,
        nf=nf,
        ch_mult=tuple(shapes[f"down.{level[0]}.resblocks.conv1.weight"][0] / nf for level in levels),
        num_res_blocks=len(levels[0]),
        num_heads=4,
        dropout=0.0,
    )
    with config.unlocked():
        config.model.update(
            attn_strides=tuple(
                2**i for i, level in enumerate(levels) if f"down.{level[0]}.attention.qkv.weight" in shapes
            ),
            affine_time="down.1.resblocks.norm2.weight" not in shapes,
            time_scale=float(steps["time_scale"]),
            channel_order="bgr",
        )
    config.data.update(image_size=256, num_channels=channels, centered=True)
    config.sampling.update(method="ddim", grid=str(n), num_steps=0, microbatch=2)
    return config


def _numbered(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> list[int]:
    return sorted(int(found[1]) for name in shapes if (found := re.fullmatch(pattern, name)))


def _spans(halvings: list[int], blocks: list[int]) -> list[tuple[int, int]]:
    """(number before, number after) of each level's blocks."""
    return list(zip([0, *halvings], [*halvings, blocks[-1] + 1], strict=True))
