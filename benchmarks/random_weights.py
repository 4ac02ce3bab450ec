"""Random weights that exercise a network as trained ones do: activations keep their size, no layer starts at zero."""

import zlib
from collections.abc import Mapping

import numpy as np


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Kernels of variance 1 / fan-in, scales of 1, biases of 0, Fourier frequencies of std 16; by parameter path."""
    generator, weights = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            weights[name] = generator.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[:-1])))
        elif name.startswith("GaussianFourierProjection"):
            weights[name] = 16 * generator.normal(size=shape).astype(np.float32)
        else:
            weights[name] = np.full(shape, float(name.endswith("scale")), np.float32)
    return weights


def random_state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights of a torch classifier by its names and layouts (o, i, h, w), each tensor from a seed made of its name.

    Kernels have variance 2 / fan-in, which rectifiers keep; normalisations and biases differ from their neutral values.
    """
    weights = {}
    for name, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            drawn = generator.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif name.endswith(("weight", "running_var")):
            drawn = generator.uniform(0.7, 1.3, shape).astype(np.float32)
        else:
            drawn = generator.uniform(-0.3, 0.3, shape).astype(np.float32)
        weights[name] = drawn
    return weights
