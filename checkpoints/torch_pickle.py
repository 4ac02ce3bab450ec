"""Files written by `torch.save`, read with NumPy alone; nothing in them is executed.

Two containers hold the same thing, a pickle that describes tensors and the raw storages that they look into:

* since PyTorch 1.6 an uncompressed zip with `<root>/data.pkl` and `<root>/data/<key>`;
* before, a stream: three header pickles (magic, protocol, system), the object's pickle, a pickled list of storage keys,
  then for each key an 8-byte element count and the little-endian data.

A tensor is (storage, offset, size, stride) in elements, so several may share a storage. `load` leaves them as
`Tensor`s; `to_numpy` turns one into a view of the mapped file. What is not asked for (Adam's moments) is never read.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from checkpoints import pickle_data
from checkpoints.base import map_file
from checkpoints.pickle_data import Cursor, Global, Instance

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class Storage(NamedTuple):
    """A run of numbers in the file; `data()` gives the bytes that are there, which a truncated file may lack."""

    key: str
    dtype: np.dtype
    length: int  # in elements
    data: Callable[[], memoryview]


class Tensor(NamedTuple):
    """A view of a storage, counted in elements; `to_numpy` checks that it lies inside."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def load(path: Path, allowed: Mapping[str, Any] | None = None) -> Any:
    """The object that was saved, with `Tensor` for each tensor (raises ValueError, see `pickle_data.read`).

    `allowed` are the names that the pickle may use, `ALLOWED` by default.
    """
    view, allowed = map_file(path), ALLOWED if allowed is None else allowed
    if bytes(view[:4]) == ZIP_MAGIC:
        return _load_zip(view, path, allowed)
    return load_legacy(view, str(path), allowed)


def to_numpy(tensor: Tensor, name: str, source: str) -> np.ndarray:
    """The tensor as a read-only view of the file.

    Raises ValueError, naming the tensor, where the storage is missing or short, or the view leaves it or repeats
    elements (a stride of 0 would let a few bytes claim any amount of memory).
    """
    storage, offset, size, stride = tensor
    data = storage.data()
    itemsize = storage.dtype.itemsize
    if len(data) < storage.length * itemsize:
        raise ValueError(
            f"{source} is truncated: tensor {name!r} lies in storage {storage.key!r} of {storage.length * itemsize} "
            f"bytes, of which {len(data)} are there. Download or copy the file again."
        )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    elements = math.prod(size)
    if elements > storage.length or (elements and last >= storage.length):
        raise ValueError(
            f"{source}: tensor {name!r} does not fit its storage of {storage.length} elements (offset {offset}, size "
            f"{size}, stride {stride}); the file is damaged or hostile."
        )
    if elements == 0:
        return np.zeros(size, storage.dtype)
    strides = tuple(step * itemsize for step in stride)
    return np.ndarray(size, storage.dtype, data, offset * itemsize, strides)


def _load_zip(view: memoryview, path: Path, allowed: Mapping[str, Any]) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is a truncated or damaged zip ({error}); download or copy it again.") from error
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"{path} is a zip but no torch checkpoint: it has {len(roots)} data.pkl, not one.")

    def content(name: str) -> memoryview:
        if name not in entries:
            return view[:0]
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: entry {name!r} is compressed, which torch.save never does; save the file again.")
        header = bytes(view[entry.header_offset : entry.header_offset + 30])
        if entry.header_offset < 0 or len(header) < 30 or header[:4] != ZIP_MAGIC:
            raise ValueError(f"{path} is damaged: entry {name!r} does not begin where the zip's directory says.")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        return view[start : start + entry.file_size]

    root = roots[0]
    if bytes(content(f"{root}/byteorder")) not in (b"", b"little"):  # absent before torch 2.1: little
        raise ValueError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")

    def storage(persistent_id: Any) -> Storage:
        key, dtype, count = _storage(persistent_id)
        return Storage(key, dtype, count, lambda: content(f"{root}/data/{key}"))

    return pickle_data.read(Cursor(content(f"{root}/data.pkl")), allowed, str(path), storage)


def load_legacy(view: memoryview, source: str, allowed: Mapping[str, Any] | None = None) -> Any:
    """The object of a stream written before PyTorch 1.6 (EDM pickles hold one such stream a storage)."""
    cursor = Cursor(view)
    magic, protocol, system = (pickle_data.read(cursor, {}, source) for _ in range(3))
    if (magic, protocol) != (LEGACY_MAGIC, LEGACY_PROTOCOL):
        raise ValueError(f"{source} is no stream of torch.save: its first two numbers are not torch's.")
    if not isinstance(system, dict) or not system.get("little_endian"):
        raise ValueError(f"{source} was written on a big-endian machine; save it again on a little-endian one.")
    known: dict[str, Storage] = {}
    places: dict[str, memoryview] = {}

    def storage(persistent_id: Any) -> Storage:
        key, dtype, count = _storage(persistent_id)
        return known.setdefault(key, Storage(key, dtype, count, lambda: places.get(key, view[:0])))

    tree = pickle_data.read(cursor, ALLOWED if allowed is None else allowed, source, storage)
    keys = pickle_data.read(cursor, {}, source)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in known for key in keys):
        raise ValueError(f"{source} is damaged: its list of storages does not match its tensors.")
    position = cursor.position
    for key in keys:
        count = int.from_bytes(view[position : position + 8], "little")
        start, position = position + 8, position + 8 + count * known[key].dtype.itemsize
        places[key] = view[start:position]
    return tree


def _storage(persistent_id: Any) -> tuple[str, np.dtype, int]:
    kind, storage_class, key, _device, count, *view = persistent_id
    if kind != "storage" or not isinstance(storage_class, Global) or not isinstance(storage_class.meaning, np.dtype):
        raise ValueError("a persistent id is not a tensor storage")
    if not isinstance(key, str) or type(count) is not int or count < 0 or view not in ([], [None]):
        raise ValueError("a storage is described in a way that no torch since 0.4 writes")
    return key, storage_class.meaning, count


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise TypeError("a tensor is not made of a storage, an offset, a size and a stride")
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise TypeError("a tensor's offset, size and stride are not whole numbers")
    if len(size) != len(stride) or len(size) > 32:
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    return Tensor(storage, offset, size, stride)


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    """numpy.core.multiarray.scalar for plain numbers; NumPy's own would take pointers from a hostile dtype."""
    kind = dtype.args[0] if isinstance(dtype, Instance) else None
    byte_order = dtype.state[1] if isinstance(dtype, Instance) and dtype.state else "|"
    if kind not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1") or byte_order not in "<|=":
        raise TypeError(f"a NumPy scalar of type {kind!r} is no plain little-endian number")
    return np.frombuffer(data, np.dtype("<" + kind), 1)[0].item()


def _latin1(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")  # how pickle protocol 2 spells bytes


_DTYPES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": ml_dtypes.bfloat16,
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}

# Every name that the pickles of published weights use, and what stands for it here.
ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": pickle_data.plain_dict,
    "collections.Counter": lambda counts: pickle_data.plain_dict(counts.items()),  # milestones of a learning rate
    "argparse.Namespace": lambda *args: Instance("argparse.Namespace", args),  # the settings of a run
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": lambda sizes: tuple(sizes),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": lambda *args: Instance("numpy.dtype", args),
    "_codecs.encode": _latin1,
    **{f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()},
}
