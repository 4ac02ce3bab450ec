"""Writes torch and EDM files for tests without torch: a pickle assembler, and the two containers around it.

Independent of the readers: the instructions are spelt from the pickle protocol, the containers from their description.
"""

import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Name(NamedTuple):
    """GLOBAL: a class or function by module and name."""

    module: str
    name: str


class Call(NamedTuple):
    """REDUCE: function(*args)."""

    function: Any
    args: tuple


class Build(NamedTuple):
    """BUILD: an object and its state."""

    target: Any
    state: Any


class Stored(NamedTuple):
    """BINPERSID: torch's way to point at a storage."""

    persistent_id: tuple


class Memo(NamedTuple):
    """BINPUT after a value, or BINGET where the value is left out."""

    index: int
    value: Any = None


STORAGE_NAMES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
}


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + _code(value) + b"."


def _code(value: Any) -> bytes:
    match value:
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, args):
            return _code(function) + _code(tuple(args)) + b"R"
        case Build(target, state):
            return _code(target) + _code(state) + b"b"
        case Stored(persistent_id):
            return _code(persistent_id) + b"Q"
        case Memo(index, None):
            return b"h" + bytes([index])
        case Memo(index, kept):
            return _code(kept) + b"q" + bytes([index])
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(_code, value)) + b"t"
        case list():
            return b"(" + b"".join(map(_code, value)) + b"l"
        case dict():
            return b"(" + b"".join(_code(k) + _code(v) for k, v in value.items()) + b"d"
    raise TypeError(type(value))


def tensor(
    array: np.ndarray, key: str, offset: int = 0, size: tuple | None = None, stride: tuple | None = None, **storage: Any
) -> Call:
    """What torch pickles for a tensor that looks into storage `key`; size and stride default to the whole array's."""
    size = array.shape if size is None else size
    stride = tuple(s // array.itemsize for s in array.strides) if stride is None else stride
    name = Name("torch", STORAGE_NAMES[array.dtype.name])
    pointer = Stored(("storage", name, key, "cpu", storage.get("count", array.size)))
    arguments = (pointer, offset, size, stride, False, Call(Name("collections", "OrderedDict"), ()))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)


def write_zip(path: Path, value: Any, storages: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def legacy_stream(value: Any, storages: dict[str, np.ndarray]) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickled(item) for item in (0x1950A86A20F9469CFC6C, 1001, system, value, list(storages))]
    return b"".join(head) + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())


def edm_tensor(array: np.ndarray, key: str = "0") -> Call:
    """EDM embeds each storage as a byte string that is itself a legacy stream, of a bare storage."""
    name = Name("torch", STORAGE_NAMES[array.dtype.name])
    stream = legacy_stream(Stored(("storage", name, key, "cpu", array.size, None)), {key: array})
    storage = Call(Name("torch.storage", "_load_from_bytes"), (stream,))
    stride = tuple(s // array.itemsize for s in array.strides)
    hooks = Call(Name("collections", "OrderedDict"), ())
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, 0, array.shape, stride, False, hooks))


def edm_parameter(array: np.ndarray) -> Call:
    hooks = Call(Name("collections", "OrderedDict"), ())
    return Call(Name("torch._utils", "_rebuild_parameter"), (edm_tensor(array), True, hooks))


def edm_module(class_name: str, state: dict[str, Any], source: str = "raise SystemExit('never run this')") -> Call:
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Call(Name("torch_utils.persistence", "_reconstruct_persistent_obj"), (meta,))
