"""The networks of `models` as the published JAX program computes them: other filters and normalisation, same weights.

`use(filters)` replaces four functions in this process. Filters become convolutions with the two-dimensional kernel:

- "one_channel", as published: zeros are inserted in memory, channels are moved into the batch, the map is convolved
  at full resolution and thinned out after;
- "depthwise": `feature_group_count` and dilation of the input, the usual way to write it today.

Group normalisation becomes `flax.linen.GroupNorm`'s: a five-dimensional reshape, variance E[x^2] - E[x]^2.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models import edm_unet, layers, resample, unet2d

FILTERS = ("one_channel", "depthwise")
Pad = tuple[int, int]
Filter = Callable[[jax.Array, np.ndarray, int, int, Pad], jax.Array]


def one_channel(x: jax.Array, kernel: np.ndarray, up: int, down: int, pad: Pad) -> jax.Array:
    """x [b, h, w, c] with `up` - 1 zeros behind every pixel, padded, convolved with `kernel`, every `down`-th kept."""
    b, h, w, c = x.shape
    x = jnp.pad(x.reshape(b, h, 1, w, 1, c), ((0, 0), (0, 0), (0, up - 1), (0, 0), (0, up - 1), (0, 0)))
    x = jnp.pad(x.reshape(b, h * up, w * up, c), ((0, 0), pad, pad, (0, 0)))
    x = x.transpose(0, 3, 1, 2)
    flat = x.reshape(b * c, 1, *x.shape[2:])
    weight = jnp.asarray(kernel[::-1, ::-1, None, None], x.dtype)
    out = jax.lax.conv_general_dilated(flat, weight, (1, 1), "VALID", dimension_numbers=("NCHW", "HWIO", "NCHW"))
    return out.reshape(b, c, *out.shape[2:]).transpose(0, 2, 3, 1)[:, ::down, ::down]


def depthwise(x: jax.Array, kernel: np.ndarray, up: int, down: int, pad: Pad) -> jax.Array:
    """The same by one convolution, a group a channel."""
    c = x.shape[-1]
    weight = jnp.asarray(np.broadcast_to(kernel[::-1, ::-1, None, None], (*kernel.shape, 1, c)), x.dtype)
    padding = (pad[0], pad[1] + up - 1)  # zeros behind the last pixel too, which dilation leaves out
    return jax.lax.conv_general_dilated(
        x, weight, (down, down), (padding, padding), (up, up), None, ("NHWC", "HWIO", "NHWC"), feature_group_count=c
    )


def _kernel(taps: Sequence[float], gain: float) -> np.ndarray:
    """The outer product of the taps, of sum `gain` squared."""
    line = gain * np.asarray(taps, np.float64) / np.sum(taps)
    return np.outer(line, line)


def resampling(convolve: Filter) -> dict[str, Callable[..., jax.Array]]:
    """`fir_filter`, `fir_downsample` and `fir_upsample` of `models.resample` by such a convolution."""

    def fir_filter(x, kernel, before, after, gain=1.0):
        return convolve(x, _kernel(kernel, gain), 1, 1, (before, after))

    def fir_downsample(x, kernel, padded=False):
        excess = 0 if padded else len(kernel) - 2
        return convolve(x, _kernel(kernel, 1.0), 1, 2, ((excess + 1) // 2, excess // 2))

    def fir_upsample(x, kernel):
        excess = len(kernel) - 2
        return convolve(x, _kernel(kernel, 2.0), 2, 1, ((excess + 1) // 2 + 1, excess // 2))

    return {"fir_filter": fir_filter, "fir_downsample": fir_downsample, "fir_upsample": fir_upsample}


def normalize_groups(x: jax.Array, scale: jax.Array, bias: jax.Array, num_groups: int, epsilon: float) -> jax.Array:
    """What `flax.linen.GroupNorm` computes."""
    b, h, w, c = x.shape
    grouped = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(b, h, w, num_groups, c // num_groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.maximum(0.0, jnp.square(grouped).mean((1, 2, 4), keepdims=True) - jnp.square(mean))
    centred = (grouped - mean).reshape(x.shape)
    factor = jnp.broadcast_to(jax.lax.rsqrt(variance + epsilon), (b, 1, 1, num_groups, c // num_groups))
    multiplier = factor.reshape(b, 1, 1, c) * scale[None, None, None]
    return (centred * multiplier + bias[None, None, None]).astype(x.dtype)


def use(filters: str) -> None:
    """From now on every network of this process is computed so; `filters` is one of FILTERS."""
    functions = resampling({"one_channel": one_channel, "depthwise": depthwise}[filters])
    functions["normalize_groups"] = normalize_groups
    for module in (layers, resample, unet2d, edm_unet):  # wherever one is called by its name
        for name, function in functions.items():
            if hasattr(module, name):
                setattr(module, name, function)
