"""Holds a file's tensors against the network that is to receive them: every name, every shape, before anything runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from numpy.typing import DTypeLike

from checkpoints.base import flatten, unflatten

Shapes = Mapping[str, tuple[int, ...]]  # parameter path "Conv_0/kernel" -> shape


def shapes(params: Mapping[str, Any]) -> Shapes:
    """The shapes, by path, of nested parameters: of arrays, or of the structs that `jax.eval_shape` returns."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}


class Differences(NamedTuple):
    """How a file differs from a network. `reshaped` only gains or loses leading axes of length 1, which is repaired."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    reshaped: tuple[str, ...]

    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    def report(self) -> str:
        """The differences that cannot be repaired, the first ten of each kind."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshaped}
        lines = []
        for kind, names in kinds.items():
            if names:
                more = [f"and {len(names) - 10} more"] if len(names) > 10 else []
                lines.append(f"  {len(names)} {kind}: {', '.join([*names[:10], *more])}")
        return "\n".join(lines)


def compare(flat: Mapping[str, np.ndarray], expected: Shapes) -> Differences:
    """The file's tensors (under the network's names) against the shapes of the network's parameters."""
    common = [name for name in expected if name in flat]
    other = [name for name in common if flat[name].shape != tuple(expected[name])]
    repairable = [name for name in other if _core(flat[name].shape) == _core(expected[name])]
    misshaped = [
        f"{name} {flat[name].shape} instead of {tuple(expected[name])}" for name in other if name not in repairable
    ]
    return Differences(
        missing=tuple(f"{name} {tuple(expected[name])}" for name in expected if name not in flat),
        unexpected=tuple(f"{name} {flat[name].shape}" for name in flat if name not in expected),
        misshaped=tuple(misshaped),
        reshaped=tuple(repairable),
    )


def fit(
    flat: Mapping[str, np.ndarray], expected: Shapes, source: Path | str, dtype: DTypeLike = np.float32
) -> dict[str, Any]:
    """The nested parameters of a network, from tensors under its names.

    Leading axes of length 1 are dropped or added where the rest agrees (Flax before 0.4 gave GroupNorm scales the shape
    (1, 1, 1, C)); that is logged once. Floating-point tensors are cast to `dtype`: float16 files widen, the float64
    tensors of some PyTorch files narrow.

    Args:
      flat: tensors by parameter path, from `names` or a reader whose names are the network's own.
      expected: the network's parameter shapes, from `shapes`.
      source: the file, for messages.

    Raises: ValueError that lists the missing, unexpected and misshaped tensors, the first ten of each.
    """
    differences = compare(flat, expected)
    if not differences.fits():
        raise ValueError(
            f"{source} does not fit the network of the config:\n{differences.report()}\n"
            "Choose the config that the weights were trained with (--mode=inspect shows what the file holds)."
        )
    if differences.reshaped:
        logging.info(
            "%s: leading axes of length 1 repaired in %d tensors, %s the first.",
            source,
            len(differences.reshaped),
            differences.reshaped[0],
        )
    params = {}
    for name, shape in expected.items():
        tensor = flat[name].reshape(shape)
        floating = tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"
        params[name] = tensor.astype(dtype) if floating else tensor
    return unflatten(params)


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without its leading ones."""
    shape = tuple(shape)
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape
