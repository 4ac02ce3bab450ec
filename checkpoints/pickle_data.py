"""Reads a pickle as data: nothing in it is ever called.

A pickle is a program for a small stack machine, and `pickle.load` runs it: a file can name any function and call it.
Here the same program is stepped through with `pickletools.genops`, and the three dangerous instructions mean less:

* GLOBAL (name a function or class) looks the name up in a table that the reader supplies, and refuses every other name;
* REDUCE and NEWOBJ (call it) call the table's entry, a few lines of ours that build plain data;
* BUILD (set attributes, or call `__setstate__`) only remembers the state.

Lengths and memo indices that the file only claims allocate nothing: byte strings are views of it, the memo is a dict.
Sets become lists and mapping keys must be plain, so that no hash of a file's own structure is computed.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING".split()
)


class RefusedPickle(ValueError):
    """A pickle asked for something a weight file does not need. Nothing of it was executed."""


class Global(NamedTuple):
    """An allowed name and what stands for it: a function that builds data, or a value (a storage class's dtype)."""

    name: str
    meaning: Any


@dataclasses.dataclass
class Instance:
    """Stands for an object of an allowed class: what it would have been built from."""

    name: str
    args: tuple
    state: Any = None


class Placeholder(Instance):
    """Stands for an object of a class that nobody here knows; whatever is done to it makes no difference."""


class Cursor:
    """A position in a buffer; several pickles and raw data may follow one another there."""

    def __init__(self, view: memoryview):
        self.view, self.position = view, 0

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        data = bytes(self.view[self.position : self.position + size])
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        line = bytes(self.view[self.position : self.position + 1024]).partition(b"\n")[0] + b"\n"
        return self.read(len(line))


def read(
    cursor: Cursor,
    allowed: Mapping[str, Any],
    source: str,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object of the pickle at `cursor`, which is left behind it.

    Args:
      cursor: where the pickle begins.
      allowed: "module.name" -> what stands for it (see `Global`).
      source: the file, for messages.
      persistent: builds what a persistent id stands for (torch's storages).

    Raises: RefusedPickle for any other global or instruction; ValueError for damaged or truncated data.
    """
    stack: list[Any] = []
    arg: Any
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    try:
        for opcode, arg, _ in pickletools.genops(cursor):  # type: ignore[arg-type]
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "PROTO" | "FRAME":
                    pass
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case name if name in _LITERALS:
                    stack.append(arg)
                case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                    stack.append(cursor.view[cursor.position - len(arg) : cursor.position])
                case "MARK":
                    marks.append(len(stack))
                case "POP":
                    stack.pop()
                case "POP_MARK":
                    since_mark()
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    marks.append(len(stack) - int(opcode.name[-1]))
                    stack.append(tuple(since_mark()))
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "EMPTY_LIST" | "EMPTY_SET":
                    stack.append([])
                case "LIST" | "FROZENSET":
                    stack.append(since_mark())
                case "APPEND":
                    item = stack.pop()
                    _extend(stack[-1], [item])
                case "APPENDS" | "ADDITEMS":
                    items = since_mark()
                    _extend(stack[-1], items)
                case "EMPTY_DICT":
                    stack.append({})
                case "DICT":
                    items = since_mark()
                    stack.append({})
                    _update(stack[-1], items)
                case "SETITEM" | "SETITEMS":
                    if opcode.name == "SETITEM":
                        marks.append(len(stack) - 2)
                    items = since_mark()
                    _update(stack[-1], items)
                case "BINPUT" | "LONG_BINPUT":
                    memo[arg] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "GLOBAL":
                    stack.append(_lookup(arg.replace(" ", "."), allowed, source))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_lookup(".".join((module, name)), allowed, source))
                case "REDUCE" | "NEWOBJ":
                    args, function = stack.pop(), stack.pop()
                    if isinstance(function, Placeholder):
                        stack.append(Placeholder(function.name, ()))
                        continue
                    if not isinstance(function, Global) or not isinstance(args, tuple):
                        raise RefusedPickle(f"{source}: the pickle calls something that it built itself; refused.")
                    stack.append(function.meaning(*args))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Instance):
                        stack[-1].state = state  # anything else (torch hangs `_metadata` on a dict) needs no attributes
                case "BINPERSID" if persistent is not None:
                    stack.append(persistent(stack.pop()))
                case name:
                    raise RefusedPickle(f"{source}: the pickle instruction {name} has no place in a weight file.")
    except RefusedPickle:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{source} is damaged or truncated: its pickle breaks off or makes no sense near byte {cursor.position} "
            f"({error}). Download or copy it again."
        ) from error
    raise AssertionError("genops ends with STOP or an error")


def plain_dict(pairs: Any = ()) -> dict:
    """Stands for `dict` and its subclasses; Python 2 pickled an OrderedDict as a list of pairs."""
    mapping: dict[Any, Any] = {}
    for key, value in pairs:
        _update(mapping, [key, value])
    return mapping


def _lookup(name: str, allowed: Mapping[str, Any], source: str) -> Global:
    if name not in allowed:
        raise RefusedPickle(
            f"{source}: the pickle asks for {name!r}, which is not among the names that weight files need. Nothing "
            "was executed. If you trust the file, load it with the program that wrote it and save its bare state_dict."
        )
    return Global(name, allowed[name])


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, Placeholder):
        return
    if not isinstance(target, list):
        raise TypeError(f"items appended to a {type(target).__name__}")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    if isinstance(target, Placeholder):
        return
    if not isinstance(target, dict):
        raise TypeError(f"entries set in a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, Global | Placeholder):  # Lightning keeps the state of a callback under its class
            key = key.name
        if not isinstance(key, str | int | float | None):
            raise TypeError(f"a key is a {type(key).__name__}")
        target[key] = value
