"""Nearest neighbours in the training set: has the model drawn something new, or remembered?

The distance is the root mean square over pixels, in [0, 1] units, to a training image or its mirror image (models are
trained with flips, so a mirrored copy is a copy). A distance alone says little, for smooth images are close to
everything; so the same is measured for photographs held out of training, which cannot have been copied.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from metrics.inputs import Images, to_unit, unit_batches

_CANDIDATES = 4  # more than asked for, so that float32 rounding cannot drop a true neighbour


Indices = Int[np.ndarray, "n k"]
Distances = Float[np.ndarray, "n k"]
Flags = Bool[np.ndarray, "n k"]


class Neighbours(NamedTuple):
    """For each query its k nearest training images, nearest first."""

    indices: Indices  # into the training set
    distance: Distances  # RMS over pixels, [0, 1] units
    mirrored: Flags  # the training image's mirror image is the closer one


class Memorisation(NamedTuple):
    """Neighbours of samples beside those of held-out photographs, and two numbers that compare them."""

    samples: Neighbours
    held_out: Neighbours
    closer: (
        float  # chance that a sample is nearer to the training set than a held-out photograph is; 0.5: no difference
    )
    copies: float  # share of samples whose nearest neighbour stands out as only 1 % of held-out photographs' do


def nearest_neighbours(queries: Images, training: Images, count: int = 2, mirror: bool = True) -> Neighbours:
    """The `count` nearest training images of each query, mirror images included unless `mirror` is False.

    Args: queries [n, h, w, c] and training [m, h, w, c], uint8 or in [0, 1], m >= count.
    Costs O(n m h w c) as matrix products in float32; the distances returned are recomputed in float64 from the pixels.

    Raises ValueError when the shapes differ or the training set is too small.
    """
    if np.shape(queries)[1:] != np.shape(training)[1:] or len(training) < count:
        raise ValueError(
            f"Queries {np.shape(queries)} and training images {np.shape(training)} need one image shape and at least "
            f"{count} training images; load the training set at the model's size (config.data.image_size)."
        )
    training = np.asarray(training)
    parts = [_search(batch, training, count, mirror) for batch in unit_batches(queries, "queries")]
    return Neighbours(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def memorisation(samples: Images, training: Images, held_out: Images) -> Memorisation:
    """Are samples nearer to the training set than photographs the model has never seen?

    `closer` compares nearest distances (the Mann-Whitney statistic); smooth or low-contrast samples raise it too.
    `copies` looks at the ratio of the nearest to the second nearest distance, which smoothness does not change: near 0
    for a copy, near 1 otherwise. It is 0.01 for a model that copies nothing.
    """
    from scipy.stats import rankdata  # a second of every start, otherwise

    ours, theirs = nearest_neighbours(samples, training), nearest_neighbours(held_out, training)
    n, m = len(ours.distance), len(theirs.distance)
    ranks = rankdata(np.concatenate([ours.distance[:, 0], theirs.distance[:, 0]]))
    closer = 1 - (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)
    copies = np.mean(_first_to_second(ours) < np.quantile(_first_to_second(theirs), 0.01))
    return Memorisation(ours, theirs, float(closer), float(copies))


def _first_to_second(neighbours):
    first, second = neighbours.distance[:, 0], neighbours.distance[:, 1]
    return np.divide(first, second, out=np.zeros_like(first), where=second > 0)


def _search(queries, training, count, mirror):
    keep = min(count + _CANDIDATES, len(training))
    flat = queries.reshape(len(queries), -1).astype(np.float32)

    def squares(images):
        """|q - x|^2 - |q|^2; the constant does not change the order."""
        rows = images.reshape(len(images), -1).astype(np.float32)
        return np.sum(rows**2, axis=1)[None] - 2 * flat @ rows.T

    values, indices, start = [], [], 0
    for batch in unit_batches(training, "training images"):
        # One entry an image, mirrored or not: else a symmetric image would be its own second neighbour.
        value = np.minimum(squares(batch), squares(batch[:, :, ::-1])) if mirror else squares(batch)
        best = np.argsort(value, axis=1)[:, :keep]
        values.append(np.take_along_axis(value, best, axis=1))
        indices.append(start + best)
        start += len(batch)
    best = np.argsort(np.concatenate(values, axis=1), axis=1)[:, :keep]
    index = np.take_along_axis(np.concatenate(indices, axis=1), best, axis=1)
    return _measure(queries, training, index, count, mirror)


def _measure(queries, training, index, count, mirror):
    """Distances to the candidates `index` [n, keep] from the pixels themselves, and the best `count` of them."""

    def rms(images):
        return np.sqrt(np.mean((queries - images) ** 2, axis=(1, 2, 3)))

    candidates = [to_unit(training[column], "training images") for column in index.T]
    plain = np.stack([rms(images) for images in candidates], axis=1)
    mirrored = (
        np.stack([rms(images[:, :, ::-1]) for images in candidates], axis=1) if mirror else np.full_like(plain, np.inf)
    )
    distance = np.minimum(plain, mirrored)
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return Neighbours(*(np.take_along_axis(field, order, axis=1) for field in (index, distance, mirrored < plain)))
