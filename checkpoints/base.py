"""What every reader returns: the tensors of a file under the file's own names, and what else the file says.

A reader knows containers, not networks: it never transposes, renames or casts. `checkpoints.names` turns a file's names
and layouts into this toolkit's, `checkpoints.fitting` then holds them against the network that is to receive them.
"""

import hashlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Tensors = dict[str, np.ndarray]  # flat; where the container allows, read-only views of the mapped file


class Part(NamedTuple):
    """One of the networks of a model that has several: the codec, the text encoder."""

    tensors: Tensors  # under the file's own names
    config: dict[str, Any] | None  # its architecture, where the file carries it
    path: Path


class Checkpoint(NamedTuple):
    """The content of one weight file (or diffusers folder)."""

    # score_sde_torch, score_sde_flax, distillation_flax, distillation_torch, dsno_torch, openai_torch,
    # torch_state_dict, edm_pickle, diffusers, safetensors, compvis or native
    format: str
    raw: Tensors  # the weights as trained, or the only set that the file has
    ema: Tensors | None  # their moving average under the same names; None where the file has one set only
    config: dict[str, Any] | None  # the architecture, where the file carries it
    step: int | None
    path: Path
    extra: dict[str, Any]  # smaller facts the file carries, by name
    notes: tuple[str, ...]  # what was repaired or assumed while reading, one sentence each

    def weights(self, ema: bool = True) -> Tensors:
        """The set to sample with: the moving average by default, and the only set where there is but one."""
        return self.ema if ema and self.ema is not None else self.raw

    def sha256(self) -> str:
        """Hash of the file, streamed; of a folder, over its JSON and weight files in the order of their names."""
        files = [self.path]
        if self.path.is_dir():
            kinds = (".json", ".safetensors", ".bin")
            files = sorted(file for file in self.path.rglob("*") if file.suffix in kinds)
        digest = hashlib.sha256()
        for file in files:
            with open(file, "rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def map_file(path: Path) -> memoryview:
    """The bytes of a file, paged in when touched; arrays made from slices of it keep the mapping alive."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; download or copy it again.")
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}; the leaves are whatever is not a mapping."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten` (empty mappings are not kept)."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree
