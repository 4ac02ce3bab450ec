"""Random weights that exercise a network as trained ones do: activations keep their size, no layer starts at zero."""

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
