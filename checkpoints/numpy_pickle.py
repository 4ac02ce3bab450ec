"""NumPy arrays in plain containers from a pickle (EDM2's reference statistics), through the allow-list reader."""

from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import pickle_data
from checkpoints.base import map_file
from checkpoints.pickle_data import Cursor, Instance

_PLAIN = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def is_pickle(path: Path) -> bool:
    """Whether the file begins as pickles of protocol 2 to 5 do."""
    with open(path, "rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")


def read(path: Path) -> Any:
    """The dicts and lists of the file, with plain little-endian arrays in them. Nothing in it is executed.

    Raises ValueError for other content or damage.
    """
    tree = pickle_data.read(Cursor(map_file(path)), ALLOWED, str(path))
    try:
        return _arrays(tree)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{path} holds an array that cannot be read ({error}); save it with np.savez.") from error


def _arrays(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _arrays(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_arrays, tree))
    if not isinstance(tree, Instance):
        return tree
    if tree.name != "numpy.ndarray":
        raise ValueError(f"a {tree.name} stands where an array should")
    _, shape, dtype, fortran, data = tree.state
    kind = dtype.args[0] if isinstance(dtype, Instance) else None
    order = dtype.state[1] if isinstance(dtype, Instance) and dtype.state else "|"
    if kind not in _PLAIN or order not in "<|=":
        raise ValueError(f"its numbers are of type {order}{kind}")
    return np.frombuffer(data, np.dtype("<" + kind)).reshape(shape, order="F" if fortran else "C")


def _array(*_: Any) -> Instance:
    return Instance("numpy.ndarray", ())


def _latin1(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")  # how protocol 2 spells bytes


ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": pickle_data.plain_dict,
    "_codecs.encode": _latin1,
    "numpy.ndarray": _array,
    "numpy.dtype": lambda *args: Instance("numpy.dtype", args),
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
}
