"""The Inception score: does a classifier name each image surely, and all images together variously?

Salimans et al. (2016), "Improved techniques for training GANs". It compares with no data set, rewards nothing within a
class, and means little for images that are not of the classifier's classes.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Logits = Float[np.ndarray, "n k"]


class Spread(NamedTuple):
    """Over the splits."""

    mean: float
    std: float  # divisor: their number


def inception_score(logits: Logits, splits: int = 10) -> Spread:
    """exp of the mean over images of KL(p(y | x) || p(y)), for consecutive equal parts of the images; 1 to k.

    p(y) is the mean of p(y | x) over the images of a part, so a part of m images scores at most m: small parts bias the
    score downwards. Published figures take 10 parts of 5000.

    Raises ValueError for fewer images than parts.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(
            f"The Inception score of logits {logits.shape} in {splits} parts needs [n, k] with n at least the number "
            "of parts; draw more images (--num_samples)."
        )
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    ends = [i * len(logits) // splits for i in range(splits + 1)]
    scores = [_score(log_p[start:end]) for start, end in zip(ends[:-1], ends[1:], strict=True)]
    return Spread(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p):
    p = np.exp(log_p)
    marginal = p.mean(axis=0, keepdims=True)
    # A class that underflows in every image of the part has p = 0 and adds nothing.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    return np.exp(np.sum(p * (log_p - log_marginal), axis=1).mean())
