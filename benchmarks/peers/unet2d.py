"""NCSN++ as diffusers' `UNet2DModel` can write it, for comparison with `models.unet2d`: same settings, same weights.

diffusers has the image pyramids of the published 256-pixel networks ("Skip" blocks) and not the residual one of the
CIFAR-10 networks; otherwise the networks here have the widths, depths and sizes of two shipped configs. It is a config
file too:

    python -m benchmarks network_call --model_config benchmarks/peers/unet2d.py:cifar10 --contenders ours,diffusers
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import diffusers

SIZES = {"cifar10": ([128, 256, 256, 256], 4), "demo": ([32, 64, 64, 64], 2)}  # widths, blocks a level


def settings(size: str) -> dict[str, Any]:
    """The config.json of a network for 32-pixel images, attention at 16, as the published VE folders have it."""
    widths, blocks = SIZES[size]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": 32,
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D"],
        "up_block_types": ["SkipUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": math.sqrt(2),
        "attention_head_dim": None,
        "norm_num_groups": None,
        "norm_eps": 1e-6,
    }


def get_config(size: str = "cifar10") -> ConfigDict:
    """Raises KeyError for a size that is not in SIZES."""
    return diffusers.translate(settings(size), None, f"benchmarks/peers/unet2d.py:{size}")


def state_dict(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Our tensors, by path, under torch's names and in its layouts; `shapes` are those of torch's state dict.

    Raises ValueError for a tensor that has no counterpart or another shape.
    """
    spelt = {re.sub("[./]", "_", path): tensor for path, tensor in weights.items()}
    found = {}
    for name, shape in shapes.items():
        *parent, leaf = name.split(".")
        leaves = {"weight": ("kernel", "scale", "W")}.get(leaf, (leaf,))
        tensor = next((spelt["_".join([*parent, ours])] for ours in leaves if "_".join([*parent, ours]) in spelt), None)
        if tensor is None:
            raise ValueError(f"diffusers' {name} has no counterpart among our weights.")
        tensor = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        if tensor.shape != tuple(shape):
            raise ValueError(f"diffusers' {name} is {tuple(shape)}, ours {tensor.shape}.")
        found[name] = np.ascontiguousarray(tensor)
    if len(found) != len(weights):
        raise ValueError(f"{len(weights)} tensors here, {len(found)} in diffusers' network.")
    return found
