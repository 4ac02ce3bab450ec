"""How images become what an Inception network takes: 299 pixels a side, values in about [-1, 1].

Programs differ here, and figures differ with it: Frechet distances of 32-pixel images by some tenths. A row therefore
names its input.

* "pytorch_fid": bilinear, pixel centres aligned, no antialiasing; x / 127.5 - 1.
* "tensorflow": bilinear as TensorFlow 1 has it, corner pixels aligned at the upper left, no antialiasing; (x - 128) /
  128. So do the 2015 graph itself and the programs that run it (ADM's and EDM's evaluators, score_sde, torch-fidelity).
* "clean_fid": Pillow's bicubic filter, which antialiases, clipped to [0, 255]; (x - 128) / 128 (Parmar et al. 2022).

Each resizing is linear and separable, so it is a matrix an axis, made in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

INPUTS = ("pytorch_fid", "tensorflow", "clean_fid")

Pictures = Num[Array, "b h w c"]
Prepared = Float[Array, "b {side} {side} 3"]
Weights = Float[np.ndarray, "out in"]


def prepare(images: Pictures, kind: str, side: int) -> Prepared:
    """Images [b, h, w, c] in 0..255 (any real dtype), c = 1 or 3 -> [b, side, side, 3] float32 for the network.

    Grey images are repeated over the three channels. Raises ValueError for an unknown kind.
    """
    if kind not in INPUTS:
        raise ValueError(f"config.eval.detector_input={kind!r} is unknown; choose one of {INPUTS}.")
    x = images.astype(jnp.float32)
    rows, columns = (jnp.asarray(resize_weights(kind, size, side), jnp.float32) for size in x.shape[1:3])
    exact = jax.lax.Precision.HIGHEST
    x = jnp.einsum("bhwc,Ww->bhWc", x, columns, precision=exact)
    x = jnp.einsum("bhwc,Hh->bHwc", x, rows, precision=exact)
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    if kind == "pytorch_fid":
        return x / 127.5 - 1
    return ((jnp.clip(x, 0, 255) if kind == "clean_fid" else x) - 128) / 128


def resize_weights(kind: str, size: int, side: int) -> Weights:
    """The matrix [side, size] that resizes one axis; its rows sum to one."""
    if kind == "clean_fid":
        return _filtered(size, side)
    target = np.arange(side)
    place = target * size / side if kind == "tensorflow" else (target + 0.5) * size / side - 0.5
    place = np.clip(place, 0, size - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((side, size))
    np.add.at(weights, (target, low), 1 - (place - low))
    np.add.at(weights, (target, high), place - low)
    return weights


def _filtered(size: int, side: int) -> Weights:
    """Keys' cubic (a = -1/2), widened by the factor of a reduction, over pixels inside its support, normalised."""
    factor = max(size / side, 1.0)
    centre = (np.arange(side)[:, None] + 0.5) * size / side
    first = np.floor(np.maximum(centre - 2 * factor, 0) + 0.5)
    last = np.floor(np.minimum(centre + 2 * factor, size) + 0.5)
    pixel = np.arange(size)[None]
    weights = np.where((pixel >= first) & (pixel < last), _cubic((pixel + 0.5 - centre) / factor), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
