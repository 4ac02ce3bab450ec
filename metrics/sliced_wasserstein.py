"""Sliced Wasserstein distance between image patches, scale by scale.

Karras et al. (2018), "Progressive growing of GANs": a Laplacian pyramid splits an image into octaves; at each octave
the 7 x 7 patches of one set are compared with those of the other by the Wasserstein-1 distance of their projections on
random directions. Large at the coarse end: wrong layout; at the fine end: wrong texture or noise. It sees local
structure that a power spectrum, which knows no phases, cannot.

One difference from the published program: patches of both sets are divided by the reference's standard deviation, where
it normalises each set by its own mean and deviation. So a wrong contrast or colour counts here.
"""

import numpy as np
from jaxtyping import Float

from metrics.inputs import Images, UnitImages, unit_batches

Patches = Float[np.ndarray, "m d"]

PATCH = 7  # pixels
SMALLEST_LEVEL = 16  # pixels; smaller levels hold hardly more than one patch
MAX_PATCHES = 1 << 15  # a level and set, which bounds memory

_BINOMIAL = np.array([1, 4, 6, 4, 1]) / 16


def laplacian_pyramid(images: UnitImages) -> list[UnitImages]:
    """Octaves of the images from fine to coarse: differences from their own blur, and the last blur itself.

    Halves sides while the result is at least 16 px and even; `expand` and sums give the images back exactly.
    """
    levels = []
    while min(images.shape[1:3]) // 2 >= SMALLEST_LEVEL and images.shape[1] % 2 == images.shape[2] % 2 == 0:
        coarse = _blur(images)[:, ::2, ::2]
        levels.append(images - expand(coarse))
        images = coarse
    return [*levels, images]


def expand(coarse: UnitImages) -> UnitImages:
    """Twice the size: zeros between the pixels, blurred with four times the weight."""
    n, height, width, channels = coarse.shape
    spread = np.zeros((n, 2 * height, 2 * width, channels))
    spread[:, ::2, ::2] = coarse
    return 4 * _blur(spread)


def sliced_wasserstein(a: Patches, b: Patches, directions: int = 512, seed: int = 0) -> float:
    """Wasserstein-1 distance of the projections of a and b, both [m, d], mean over random unit directions."""
    if a.shape != b.shape:
        raise ValueError(f"Patches {a.shape} and {b.shape} must be equally many and equally large; draw m of each.")
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((a.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)[None]
    gaps = [
        np.abs(np.sort(a @ some, axis=0) - np.sort(b @ some, axis=0)).mean()
        for some in np.array_split(axes, max(1, directions // 32), axis=1)
    ]
    return float(np.mean(gaps))


def pyramid_distances(
    images: Images, reference: Images, patches_per_image: int = 128, directions: int = 512, seed: int = 0
) -> dict[int, float]:
    """`sliced_wasserstein` at each octave, {side in pixels: distance}, in standard deviations of the reference.

    Both sets give equally many patches, at most 2^15 a level; places are random and fixed by `seed`. Two sets from one
    distribution are a small distance apart all the same: compare at equal n.

    Raises ValueError when the images differ in shape or are smaller than a patch.
    """
    shape, reference_shape = np.shape(images)[1:], np.shape(reference)[1:]
    if shape != reference_shape or min(shape[:2]) < PATCH:
        raise ValueError(
            f"Images {shape} and reference {reference_shape} must have one shape of at least {PATCH} x {PATCH} pixels; "
            "resize the reference to the model's size (config.data.image_size)."
        )
    count = min(MAX_PATCHES, patches_per_image * min(len(images), len(reference)))
    sides = [min(level.shape[1:3]) for level in laplacian_pyramid(np.zeros((1, *shape)))]
    distances = {}
    for side, ours, theirs in zip(sides, _draw(images, count, seed), _draw(reference, count, seed), strict=True):
        std = theirs.std(axis=(0, 2, 3), keepdims=True)
        std = np.where(std > 0, std, 1.0)  # a constant channel has no unit of its own
        ours, theirs = ((patches / std).reshape(count, -1) for patches in (ours, theirs))
        distances[side] = sliced_wasserstein(ours, theirs, directions, seed)
    return distances


def _draw(images, count, seed):
    """For each octave `count` patches [m, c, 7, 7] from random images at random places."""
    rng = np.random.default_rng(seed)
    owners = np.sort(rng.integers(0, len(images), count))
    batches, start = [], 0
    for batch in unit_batches(images):
        inside = owners[(owners >= start) & (owners < start + len(batch))] - start
        batches.append([_patches(level, inside, rng) for level in laplacian_pyramid(batch)])
        start += len(batch)
    return [np.concatenate(level) for level in zip(*batches, strict=True)]


def _patches(images, owners, rng):
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    rows = rng.integers(0, windows.shape[1], len(owners))
    columns = rng.integers(0, windows.shape[2], len(owners))
    return windows[owners, rows, columns]


def _blur(images):
    import scipy.ndimage  # half a second of every start, otherwise

    along_rows = scipy.ndimage.convolve1d(images, _BINOMIAL, axis=1, mode="mirror")
    return scipy.ndimage.convolve1d(along_rows, _BINOMIAL, axis=2, mode="mirror")
