"""This toolkit's own file: safetensors, with the config and its story in the metadata.

Names are the network's parameter paths joined with "/". One set of weights a file (the moving average, as a rule):
training keeps its optimizer elsewhere. The file of a latent model holds its codec too, whose names begin with "vae/".
With `half` the tensors of two and more axes are stored as float16 and widened to float32 on reading; vectors stay
float32, because they are small and the Fourier frequencies among them make angles of hundreds of radians.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import safetensors_file
from checkpoints.base import Checkpoint, Part, flatten

FORMAT = "score-model"
VERSION = 1


def write(
    path: Path | str,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    half: bool = False,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes `params` (a nested dict of arrays) and what describes them, atomically: a file under `path` is whole.

    Args:
      path: the file; an older one is replaced only when the new one is completely on disk.
      config: what builds the network; JSON.
      extra: further facts (JSON): `step`, the source and its hash, results.
      half: store float16 as described above.
      parts: parameters of the networks beside it by the readers' names for them, such as {"vae": codec}; `params` may
        be empty where such a part is all there is.

    Raises: ValueError for a value that float16 cannot hold or a config that JSON cannot; OSError (disk full, no
    permission), after which the older file is as it was.
    """
    path = Path(path)
    flat = {name: np.asarray(tensor) for name, tensor in flatten({**params, **(parts or {})}).items()}
    if half:
        flat = {name: _halve(tensor, name) for name, tensor in flat.items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "half": json.dumps(half)}
    if parts:
        metadata["parts"] = json.dumps(sorted(parts))
    for key, value in (("config", config), ("extra", extra or {})):
        try:
            metadata[key] = json.dumps(value, sort_keys=True)
        except TypeError as error:
            raise ValueError(f"{path}: the {key} to be stored is not plain JSON ({error}).") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            safetensors_file.dump(file, flat, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path) -> Checkpoint:
    """A file written by `write`, or any safetensors file ("safetensors": no config, the names that it has)."""
    tensors, metadata = safetensors_file.load(path)
    if metadata.get("format") != FORMAT:
        return Checkpoint("safetensors", tensors, None, None, None, path, dict(metadata), ())
    try:
        version, half, config, extra = (json.loads(metadata[key]) for key in ("version", "half", "config", "extra"))
        parts = json.loads(metadata.get("parts", "[]"))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: the metadata of this toolkit's format is incomplete or no JSON ({error!r})."
        ) from error
    if not (isinstance(config, dict) and isinstance(extra, dict) and isinstance(parts, list)):
        raise ValueError(f"{path}: the config and the extra in its metadata are to be JSON objects, the parts a list.")
    if version != VERSION:
        raise ValueError(
            f"{path} has format version {version}, this program reads {VERSION}; update it or convert again."
        )
    notes: tuple[str, ...] = ()
    if half:
        tensors = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in tensors.items()}
        notes = ("Stored in half precision, widened to float32.",)
    for name in parts:
        inside = {key: tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}/")}
        own = {key.removeprefix(f"{name}/"): tensor for key, tensor in inside.items()}
        extra.setdefault("parts", {})[name] = Part(own, None, path)
    return Checkpoint("native", tensors, None, config, extra.get("step"), path, extra, notes)


def _halve(tensor: np.ndarray, name: str) -> np.ndarray:
    if tensor.ndim < 2 or tensor.dtype != np.float32:
        return tensor
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16)
    if not np.array_equal(np.isfinite(half), np.isfinite(tensor)):
        raise ValueError(
            f"tensor {name!r} has values up to {np.abs(tensor).max():g}, beyond float16; write with half=False."
        )
    return half
