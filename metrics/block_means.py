"""Features without a network: an image becomes the means of its square blocks.

Means over 4x4 pixels of a 32-px photograph are 8 * 8 * 3 = 192 numbers: layout and colour, no texture. The averaging
hides pixel noise (N(0, 25/255) noise is divided by four), which is what `spectrum` is for.
"""

import numpy as np

from metrics.inputs import Features, Images, unit_batches


def block_means(images: Images, block: int = 4) -> Features:
    """Means over `block` x `block` pixels, [n, c * (h / block) * (w / block)], flattened channel first, then rows.

    Raises ValueError when `block` does not divide the image.
    """
    height, width = np.shape(images)[1:3]
    if block < 1 or height % block or width % block:
        raise ValueError(f"Blocks of {block} x {block} do not tile {height} x {width} images; choose a common divisor.")
    return np.concatenate([_block_means(batch, block) for batch in unit_batches(images)])


def _block_means(images, block):
    n, height, width, channels = images.shape
    tiles = images.reshape(n, height // block, block, width // block, block, channels)
    return tiles.mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(n, -1)
