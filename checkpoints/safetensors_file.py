"""The safetensors container: 8 bytes of header length, a JSON header, then the raw little-endian tensors.

Read as views of the mapped file. Written with the header in a fixed order, so that equal weights give equal bytes (the
safetensors package leaves the order of the metadata to chance, and its NumPy side knows no bfloat16).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from checkpoints.base import Tensors, map_file

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head` has this container's header."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little")


def load(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata. Raises ValueError, naming the tensor, for a truncated or inconsistent file."""
    view = map_file(path)
    length = int.from_bytes(view[:8], "little")
    try:
        if length > len(view) - 8:
            raise ValueError(f"the header claims {length} bytes of {len(view)}")
        header = json.loads(bytes(view[8 : 8 + length]))
        metadata = {str(name): str(value) for name, value in header.pop("__metadata__", {}).items()}
        entries = {
            name: (_DTYPES[entry["dtype"]], tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has a broken safetensors header ({error!r}); download or copy it again.") from error
    data, tensors = view[8 + length :], {}
    for name, (dtype, shape, start, stop) in entries.items():
        if (
            not 0 <= start <= stop <= len(data)
            or stop - start != math.prod(shape) * dtype.itemsize
            or min(shape, default=0) < 0
        ):
            raise ValueError(
                f"{path} is truncated or damaged: tensor {name!r} of shape {shape} claims bytes {start} to {stop} of "
                f"{len(data)}. Download or copy the file again."
            )
        tensors[name] = np.frombuffer(data[start:stop], dtype).reshape(shape)
    return tensors, metadata


def dump(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes the container, tensors sorted by name. Raises ValueError for a dtype it cannot hold."""
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in kinds:
            raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}, which safetensors cannot hold.")
        offsets = [position, position + tensor.nbytes]
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in sorted(tensors.items()):
        file.write(tensor.tobytes())
