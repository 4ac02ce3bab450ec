"""The one conversion table between PyTorch's names and layouts and this toolkit's (Flax's).

| torch | here | layout |
|---|---|---|
| conv `weight`, 4 axes | `kernel` (`weight` in score_sde's `Conv2d_0`) | (O, I, H, W) -> (H, W, I, O) |
| 1-d conv `weight` (O, I, 1) | `kernel` | -> (I, O): a Dense |
| linear `weight` | `kernel` | (O, I) -> (I, O) |
| embedding table `weight` | `embedding` | unchanged |
| norm `weight`, 1 axis | `scale` | unchanged |
| layer norm over an image, `weight`, `bias` (C, H, W) | `scale`, `bias` | -> (H, W, C) |
| NIN `W`, `b`, Fourier `W`, any other | the same | unchanged |

Names of modules differ too. score_sde's PyTorch networks number their modules in construction order, `all_modules.7`,
where its Flax networks count by class in call order, `ResnetBlockBigGANpp_2`; the list of the latter in the order of
the former, `module_order`, belongs to the network and comes from `models`. Other programs' dotted paths are kept.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from checkpoints.base import Checkpoint, Tensors
from checkpoints.compvis_names import unet_names

PARALLEL = "module."  # torch.nn.DataParallel puts it before every name
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers before 0.12
WRAPPED = "model."  # EDM keeps the U-Net under it, beside constants of its network scaling
BUFFERS = ("sigmas", "resample_filter", "inv_freq")  # constants that torch stores and that follow from the config


def network_names(
    checkpoint: Checkpoint, expected: Iterable[str], module_order: Sequence[str] = (), ema: bool = True
) -> Tensors:
    """The weights of a checkpoint of any format under the network's parameter paths, for `fitting.fit` or `compare`.

    Args:
      expected: the network's parameter paths (used for dotted names).
      module_order: for score_sde's networks, as `flax_names` needs it.
      ema: the moving average, or the raw weights.
    """
    tensors = checkpoint.weights(ema)
    if checkpoint.format in ("score_sde_flax", "distillation_flax", "native"):
        return tensors
    if any(name.removeprefix(PARALLEL).startswith("all_modules.") for name in tensors):
        return flax_names(tensors, module_order)
    if checkpoint.format == "edm_pickle":
        tensors = {name.removeprefix(WRAPPED): t for name, t in tensors.items() if name.startswith(WRAPPED)}
    if checkpoint.format == "diffusers":
        tensors = diffusers_names(tensors)
    expected = list(expected)
    # An unconditional latent model is the network of `models.adm`, under its own names.
    if checkpoint.format == "compvis" and not any(path.startswith("input_blocks") for path in expected):
        tensors = unet_names(tensors)
    return flax_names_dotted(tensors, expected)


def flax_names(tensors: Mapping[str, np.ndarray], module_order: Sequence[str]) -> Tensors:
    """score_sde's PyTorch tensors under its Flax paths: "all_modules.4.Conv_0.weight" -> "Block_0/Conv_0/kernel".

    Args:
      tensors: `Checkpoint.raw` or `.ema`, with or without the "module." prefix. Buffers are left out.
      module_order: Flax names of the top-level modules in torch's construction order, including those without
        parameters (an Upsample or Downsample without a convolution), which take a number all the same.

    Raises: ValueError for a name outside `all_modules` or a number beyond the list.
    """
    flat = {}
    for name, tensor in tensors.items():
        *path, leaf = name.removeprefix(PARALLEL).split(".")
        if leaf in BUFFERS:
            continue
        if len(path) < 2 or path[0] != "all_modules" or not path[1].isdecimal():
            raise ValueError(f"tensor {name!r} is not named all_modules.<number>...; this is no score_sde network.")
        number = int(path[1])
        if number >= len(module_order):
            raise ValueError(
                f"tensor {name!r} belongs to module {number}, but the config's network has {len(module_order)} "
                "modules; the config describes another network."
            )
        parent = [module_order[number], *path[2:]]
        flax_leaf, value = _to_flax(leaf, tensor)
        if parent[-1] == "Conv2d_0" and leaf == "weight":
            flax_leaf = "weight"
        flat["/".join([*parent, flax_leaf])] = value
    return flat


def torch_names(tensors: Mapping[str, np.ndarray], module_order: Sequence[str]) -> Tensors:
    """The inverse of `flax_names`, without the "module." prefix."""
    numbers = {name: number for number, name in enumerate(module_order)}
    flat = {}
    for name, tensor in tensors.items():
        module, *path, leaf = name.split("/")
        if module not in numbers:
            raise ValueError(f"parameter {name!r} belongs to no module of the network ({', '.join(module_order)}).")
        if leaf in ("kernel", "scale", "weight"):
            leaf, tensor = "weight", tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        flat[".".join(["all_modules", str(numbers[module]), *path, leaf])] = tensor
    return flat


def diffusers_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """A diffusers state dict of any age under the names that diffusers writes today, Fourier frequencies as `W`.

    Attention was once `query`, `key`, `value`, `proj_attn`, and the frequencies were stored once or twice, as `W` too.
    """
    flat = {}
    for name, tensor in tensors.items():
        name = re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.\w+$)", lambda old: _OLD_ATTENTION[old[0]], name)
        flat["time_proj.W" if name == "time_proj.weight" and tensor.ndim == 1 else name] = tensor
    return flat


def flax_names_dotted(
    tensors: Mapping[str, np.ndarray], expected: Iterable[str], buffers: Collection[str] = BUFFERS
) -> Tensors:
    """Tensors with dotted torch names (ADM, EDM, diffusers) under the parameter paths of a Flax network.

    A torch name and a Flax path are the same name when they agree after every "." and "/" is written as "_". So a Flax
    network may put its module boundaries where it likes, as long as the words stay in order: the tensor
    "input_blocks.1.0.in_layers.2.weight" is found as "input_blocks_1_0/in_layers_2/kernel" (attributes),
    "input_blocks.1.0/in_layers.2/kernel" (names given to submodules) or "input_blocks/1/0/in_layers/2/kernel".

    Args:
      tensors: `Checkpoint.raw` or `.ema`.
      expected: the network's parameter paths. They decide between `kernel` and `embedding` for a table of two axes.
      buffers: last parts of the names of tensors that are no parameters; left out.

    Returns the tensors under the expected paths; a name that matches none keeps its dots as "/", for `fit` to report.
    Raises ValueError where two expected paths are spelt the same.
    """
    paths: dict[str, str] = {}
    for path in expected:
        if paths.setdefault(_spelling(path), path) != path:
            raise ValueError(
                f"the network's parameters {paths[_spelling(path)]!r} and {path!r} differ only in separators."
            )
    flat = {}
    for name, tensor in tensors.items():
        *parent, leaf = name.removeprefix(PARALLEL).split(".")
        if leaf in buffers:
            continue
        table = "/".join([*parent, "embedding"])
        flax_leaf, value = _to_flax(leaf, tensor)
        if flax_leaf == "kernel" and tensor.ndim == 2 and _spelling(table) in paths:
            flax_leaf, value = "embedding", tensor
        path = "/".join([*parent, flax_leaf])
        path = paths.get(_spelling(path), path)
        if path in flat:
            raise ValueError(f"tensor {name!r} and another one of the file differ only in separators.")
        flat[path] = value
    return flat


def _to_flax(leaf: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """The Flax name of the last part, and the tensor in Flax's layout (a view)."""
    image_shaped = tensor.ndim == 3 and tensor.shape[2] > 1
    if leaf in ("weight", "bias") and image_shaped:
        return "scale" if leaf == "weight" else "bias", tensor.transpose(1, 2, 0)
    if leaf != "weight":
        return leaf, tensor
    if tensor.ndim == 4:
        return "kernel", tensor.transpose(2, 3, 1, 0)
    if tensor.ndim == 3:
        return "kernel", tensor[:, :, 0].T
    return ("kernel", tensor.T) if tensor.ndim == 2 else ("scale", tensor)


def _spelling(path: str) -> str:
    return re.sub("[./]", "_", path)
