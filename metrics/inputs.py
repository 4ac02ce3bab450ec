"""What metrics take: features [n, f], and images NHWC, uint8 or in [0, 1], seen as float64 a batch at a time.

Fifty thousand small photographs are 150 MB as uint8 and 1.2 GB as float64, so sets stay as they came and are converted
a batch at a time.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Shaped

Images = Shaped[
    np.ndarray, "_n h w c"
]  # uint8 in 0..255, or floating in [0, 1]; _n: sets of one call may differ in number
UnitImages = Float[np.ndarray, "_n _h _w c"]  # float64 in [0, 1]
Features = Float[np.ndarray, "_n f"]

_BATCH_BYTES = 1 << 26  # of float64 pixels in flight


def to_unit(images: Images, name: str = "images") -> UnitImages:
    """uint8 / 255, or floats as they are, in float64.

    Raises:
      ValueError: not NHWC, neither uint8 nor floating, not finite, or outside [0, 1]. `name` says whose fault it is.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} have shape {images.shape}; metrics take [n, h, w, c] with 1 or 3 channels last. "
            "Move the channel axis to the end (np.moveaxis) or add the batch axis (x[None])."
        )
    if images.dtype == np.uint8:
        return images / 255.0
    # bfloat16 and its kin are no subtypes of np.floating, so ask by kind of cast rather than by type.
    if images.dtype.kind in "iub" or not np.can_cast(images.dtype, np.float64):
        raise ValueError(f"{name} have dtype {images.dtype}; metrics take uint8 in 0..255 or floats in [0, 1].")
    unit = images.astype(np.float64)
    if not np.isfinite(unit).all():
        bad = np.flatnonzero(~np.isfinite(unit).all(axis=(1, 2, 3)))
        raise ValueError(
            f"{name} {bad[:5].tolist()} hold NaN or infinity ({len(bad)} of {len(unit)}): the sampler diverged. "
            "Use more steps (a lower --speed_up) or a weaker preconditioner (a higher --alpha)."
        )
    if unit.size and (unit.min() < 0 or unit.max() > 1):
        raise ValueError(
            f"{name} range over [{unit.min():.3g}, {unit.max():.3g}]; metrics take [0, 1]. Map a centred model's "
            "output by (x + 1) / 2 and clip, or pass what was written to disk (uint8)."
        )
    return unit


def unit_batches(images: Images, name: str = "images") -> Iterator[UnitImages]:
    """`to_unit` over consecutive batches of `images`, each at most 64 MB of float64."""
    images = np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{name} have shape {images.shape}; metrics take at least one image, [n, h, w, c].")
    size = max(1, _BATCH_BYTES // (8 * int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), size):
        yield to_unit(images[start : start + size], name)
