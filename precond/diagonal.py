"""From a mask (measured second moments) to the diagonal of a preconditioner. Float64 NumPy, before compilation.

A mask says how strong each frequency or pixel is in the data; the preconditioner takes larger steps where it is weak.
With r = mask / max(mask) the published rule (the program of Ma et al. 2022) is D = alpha / (r + alpha - 1): D is 1 at
the strongest entry and rises to alpha / (alpha - 1) where the mask vanishes. alpha -> infinity switches the filter off,
alpha = 1 is D = 1/r. The maximum is taken over all entries and channels together.
"""

import numpy as np

EVEN_TOLERANCE = 1e-3  # of the maximum; rounding in float32 files is 1e-6, a shifted spectrum is of order 1


def even_part(mask: np.ndarray, source: str) -> np.ndarray:
    """(f[k] + f[-k]) / 2 of a frequency mask [h, w, c], which must be even already up to rounding.

    Only an even filter maps real images to real images. Raises ValueError naming `source` (a file) if the mask is far
    from even, as a spectrum is whose zero frequency was moved to the centre (fftshift).
    """
    mask = np.asarray(mask, np.float64)
    mirrored = np.roll(np.flip(mask, (0, 1)), (1, 1), (0, 1))
    gap = np.abs(mask - mirrored).max() / np.abs(mask).max()
    if gap > EVEN_TOLERANCE:
        raise ValueError(
            f"{source} is not even: f[k] and f[-k] differ by {gap:.1%} of its maximum, so the filter would not map "
            "real images to real images. Zero frequency belongs at [0, 0] (undo an fftshift), or estimate the mask "
            "anew with --mode=masks."
        )
    return (mask + mirrored) / 2


def diagonal(mask: np.ndarray, alpha: float, source: str) -> np.ndarray:
    """The diagonal alpha / (mask / max(mask) + alpha - 1), float64, of the mask's shape; at least 1 everywhere.

    Raises ValueError if alpha < 1 or infinite, or if alpha = 1 and the mask has zeros: M would not be invertible.
    `source` names the mask there.
    """
    mask = np.asarray(mask, np.float64)
    if not alpha >= 1:
        raise ValueError(f"--alpha={alpha:g} must be at least 1 (published: 5); below it a filter can change sign.")
    if np.isinf(alpha):
        raise ValueError(f"--alpha={alpha:g} leaves nothing of {source}; --method=pc samples without one.")
    if alpha == 1 and mask.min() <= 0:
        raise ValueError(f"--alpha=1 divides by {source}, which has zeros; use a larger alpha, such as 1.1.")
    return alpha / (mask / mask.max() + (alpha - 1))
