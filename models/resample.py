"""FIR up- and downsampling of feature maps, in polyphase form.

A separable FIR filter with zero insertion or decimation is, per axis, a handful of shifted slices times taps: no zeros
are multiplied and no depthwise convolution is needed (which XLA runs slowly on CPUs). Borders are zero-padded, as in
the published networks, so they darken. Maps are [b, h, w, c]; kernels are sequences of taps, normalised here.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from array_types import Maps, OtherSize

Doubled = Float[Array, "b 2*h 2*w c"]
Halved = Float[Array, "b h//2 w//2 c"]


def _taps(kernel: Sequence[float], gain: float) -> np.ndarray:
    """Normalised taps, flipped: a filter is a true convolution, so its correlation runs over the reversed kernel."""
    taps = np.asarray(kernel, np.float64)[::-1]
    return gain * taps / taps.sum()


def _pad(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (before, after, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)


def _correlate(x: jax.Array, axis: int, taps: np.ndarray, before: int, after: int, stride: int = 1) -> jax.Array:
    x = _pad(x, axis, before, after)
    length = (x.shape[axis] - len(taps)) // stride + 1

    def shifted(j: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, j, j + stride * (length - 1) + 1, stride, axis)

    return functools.reduce(jnp.add, [float(tap) * shifted(j) for j, tap in enumerate(taps)])


def fir_filter(x: Maps, kernel: Sequence[float], before: int, after: int, gain: float = 1.0) -> OtherSize:
    """Filters H and W at full resolution; `gain` is per axis. Size changes by before + after + 1 - len(kernel)."""
    taps = _taps(kernel, gain)
    return _correlate(_correlate(x, 1, taps, before, after), 2, taps, before, after)


def fir_downsample(x: Maps, kernel: Sequence[float], padded: bool = False) -> OtherSize:
    """Filter, then keep every second sample: [b, h, w, c] -> [b, h/2, w/2, c]; `padded` maps bring their own border."""
    taps, total = _taps(kernel, 1.0), 0 if padded else len(kernel) - 2
    before, after = (total + 1) // 2, total // 2
    return _correlate(_correlate(x, 1, taps, before, after, 2), 2, taps, before, after, 2)


def _upsample_axis(x: jax.Array, axis: int, taps: np.ndarray, before: int) -> jax.Array:
    size, phases = x.shape[axis], []
    for phase in (0, 1):
        # Output 2i + phase sees the zero-inserted signal at 2i + phase - before + j, which holds x where that is even.
        reach = {(phase - before + j) // 2: tap for j, tap in enumerate(taps) if (phase - before + j) % 2 == 0}
        low, high = min(reach), max(reach)
        padded = _pad(x, axis, max(-low, 0), max(high, 0))
        start = max(-low, 0)
        terms = [
            float(tap) * jax.lax.slice_in_dim(padded, start + shift, start + shift + size, 1, axis)
            for shift, tap in reach.items()
        ]
        phases.append(functools.reduce(jnp.add, terms))
    shape = x.shape[:axis] + (2 * size,) + x.shape[axis + 1 :]
    return jnp.stack(phases, axis + 1).reshape(shape)


def fir_upsample(x: Maps, kernel: Sequence[float]) -> Doubled:
    """Insert zeros, then filter with gain 2 an axis: [b, h, w, c] -> [b, 2h, 2w, c]."""
    taps, total = _taps(kernel, 2.0), len(kernel) - 2
    before = (total + 1) // 2 + 1
    return _upsample_axis(_upsample_axis(x, 1, taps, before), 2, taps, before)


def naive_upsample(x: Maps) -> Doubled:
    """Nearest neighbour, factor 2."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def naive_downsample(x: Maps) -> Halved:
    """Mean of 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
