"""Weights of the DSNO program, whose U-Net is that of progressive distillation with temporal layers between its blocks.

The program numbers its modules in the order in which they are called, and within a block too the tensors of a kind come
in the order of their use. So a tensor is known by its kind and its place among those of its kind: the first convolution
of the file is the first of the network. Shapes are compared afterwards (`fitting.fit`), as for any file.

Its attention keeps queries, keys and values in one tensor, head by head: (q, k, v) of the first head, then those of the
second. The program filled that tensor from its teachers' as if all queries came first, so that with several heads
training began from scrambled attention. What a trained file holds is what its network computed with: head by head.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from checkpoints.base import Tensors

# Layers of a block in the order of their use; "q" stands for queries, keys and values, which the file has in one.
_BLOCK = ("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut", "norm", "q", "proj_out")
_KINDS = {"norm": "norm", "conv": "convolution", "time": "temporal"}  # by how the layer's name begins

Layer = dict[str, np.ndarray]  # "weight" and, where it has one, "bias"


def network_names(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], module_order: Sequence[str], source: str
) -> Tensors:
    """The tensors of a `solver-model_<n>.pt` under the parameter paths of `models.v_diffusion`.

    Args:
      tensors: in the order of the file.
      expected: the network's parameter paths and shapes.
      module_order: the network's top-level modules in the order they are called.
      source: the file, for messages.

    Raises ValueError where the file has more or fewer layers of a kind than the network.
    """
    modules = {path.rpartition("/")[0] for path in expected}
    inner = [name if name in modules else f"{name}/{part}" for name in module_order for part in _BLOCK]
    ours = _grouped({name: _kind_of(name) for name in dict.fromkeys(inner) if name in modules})
    layers = _layers(tensors)
    theirs = _grouped({name: _kind_in(layer) for name, layer in layers.items()})
    flat: Tensors = {}
    for kind in {**ours, **theirs}:
        found, wanted = theirs.get(kind, []), ours.get(kind, [])
        if len(found) != len(wanted):
            raise ValueError(
                f"{source} has {len(found)} layers that are {kind} where the network of the config has {len(wanted)}; "
                "choose the config that it was trained with (num_res_blocks, attn_resolutions and mixing of "
                "config.model)."
            )
        for here, there in zip(wanted, found, strict=True):
            flat |= _converted(here, kind, layers[there], expected)
    return flat


def _grouped(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        found.setdefault(kind, []).append(name)
    return found


def _kind_of(layer: str) -> str:
    """By the name of a layer of ours, "down_0.block_0/norm1" or "down_0.time_conv0"."""
    name = re.split(r"[./]", layer)[-1]
    return next((kind for start, kind in _KINDS.items() if name.startswith(start)), "linear")


def _kind_in(layer: Layer) -> str:
    """By the shape of the file's weight: [c] a norm, [o, i, 3, 3] a convolution, [i, o, modes, 2] a temporal layer."""
    shape = layer["weight"].shape
    if len(shape) == 1:
        return "norm"
    if len(shape) == 4 and shape[2:] != (1, 1):
        return "temporal" if shape[3] == 2 else "convolution"
    return "linear"


def _layers(tensors: Mapping[str, np.ndarray]) -> dict[str, Layer]:
    """The layers of the file in its order; what is no bias is the weight, whatever it is called."""
    found: dict[str, Layer] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        found.setdefault(layer, {})["bias" if leaf in ("bias", "b") else "weight"] = tensor
    return found


def _converted(name: str, kind: str, layer: Layer, expected: Mapping[str, tuple[int, ...]]) -> Tensors:
    """The tensors of one layer in Flax's layout."""
    weight, rest = layer["weight"], {f"{name}/bias": layer["bias"]} if "bias" in layer else {}
    if kind == "temporal":
        return {f"{name}/weights": weight}
    if kind == "norm":
        return {f"{name}/scale": weight} | rest
    if kind == "convolution":
        return {f"{name}/kernel": weight.transpose(2, 3, 1, 0)} | rest
    matrix = weight.reshape(weight.shape[:2]).T  # [i, o]
    if name.endswith("/q"):
        return _attention(name[:-2], matrix, layer["bias"], expected[f"{name}/kernel"])
    shape = expected[f"{name}/kernel"]
    return {f"{name}/kernel": matrix.reshape(shape) if matrix.size == np.prod(shape) else matrix} | rest


def _attention(block: str, matrix: np.ndarray, bias: np.ndarray, shape: tuple[int, ...]) -> Tensors:
    """q, k and v [c, heads, d] from [c, 3 heads d], which has them head by head."""
    c, heads, d = shape
    if matrix.shape != (c, 3 * heads * d):
        return {f"{block}/qkv/kernel": matrix}  # `fit` says so
    parts = np.moveaxis(matrix.reshape(c, heads, 3, d), 2, 0)
    biases = np.moveaxis(bias.reshape(heads, 3, d), 1, 0)
    kernels = {f"{block}/{part}/kernel": parts[i] for i, part in enumerate("qkv")}
    return kernels | {f"{block}/{part}/bias": biases[i] for i, part in enumerate("qkv")}
