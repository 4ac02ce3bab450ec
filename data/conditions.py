"""The user's own images as conditions: what to begin from, what is known, what to colour, what to enlarge.

Images are read from one file, or from a folder, zip or npz of them (in the order of their names), as float32 in [0, 1];
.npy files of floats are taken too. Pictures larger than the model's images are cropped to their centre and reduced;
everything else that does not fit is an error that names the file, its key and the remedy.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import create_source
from data.pipeline import crop_and_resize, match_channels
from data.sources import SUFFIXES, decode_image

Shape = tuple[int, int, int]  # (h, w, c) of the model's images


class Picture(NamedTuple):
    """One image of the user. `name` says where it came from, for messages."""

    name: str
    pixels: np.ndarray  # uint8 [h, w, c], or float [h, w, c] in [0, 1]


def read_pictures(path: str | Path, key: str) -> list[Picture]:
    """All images at `path`, which was given as `key` (a flag or a config key).

    Raises FileNotFoundError or ValueError when there is nothing, no image, or numbers that are no picture.
    """
    file = Path(path)
    if not str(path) or not file.exists():
        raise FileNotFoundError(
            f"{key}={str(path)!r}: there is no such file; give an image, or a folder or zip of images."
        )
    if file.suffix == ".npy":
        return _read_array(file, key)
    if file.is_file() and file.suffix.lower() in SUFFIXES:
        return [Picture(str(file), decode_image(file.read_bytes(), str(file)))]
    source = create_source(file)
    return [Picture(f"{file}, image {i}", source[i]["image"]) for i in range(len(source))]


def _read_array(file: Path, key: str) -> list[Picture]:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{key}: {file} is no .npy file of numbers ({error}); save it with numpy.save.") from error
    if array.ndim == 2:
        array = array[..., None]
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"{key}: {file} has shape {array.shape}; images are [h, w], [h, w, c] or [n, h, w, c], c 1 or 3."
        )
    if array.dtype == bool:
        array = array.astype(np.float32)
    if array.dtype != np.uint8:
        array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            raise ValueError(
                f"{key}: {file} has values that are NaN or infinite; every pixel must be a number in [0, 1]."
            )
        if array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"{key}: {file} has values in [{array.min():g}, {array.max():g}]; floats must lie in [0, 1]."
            )
    return [Picture(f"{file}[{i}]", pixels) for i, pixels in enumerate(array)]


def read_images(path: str | Path, shape: Shape, key: str) -> np.ndarray:
    """Pictures at the model's size, float32 [n, h, w, c] in [0, 1]: larger ones are centre-cropped and reduced.

    Raises ValueError for one that is smaller than the model's images, besides what `read_pictures` raises.
    """
    return np.stack([_fit(picture, shape, key) for picture in read_pictures(path, key)])


def _fit(picture: Picture, shape: Shape, key: str) -> np.ndarray:
    h, w, c = shape
    height, width = picture.pixels.shape[:2]
    if min(height, width) < max(h, w):
        raise ValueError(
            f"{key}: {picture.name} is {height} x {width} pixels, the model draws {h} x {w}; give an image at least "
            "that large, or enlarge a small one with the task super_resolution."
        )
    if picture.pixels.dtype == np.uint8:
        return _unit(match_channels(crop_and_resize(picture.pixels, h), c, picture.name))
    if (height, width) != (h, w):
        raise ValueError(
            f"{key}: {picture.name} is {height} x {width}, and arrays of floats are not resized; make it {h} x {w}."
        )
    return _unit(picture.pixels if picture.pixels.shape[-1] == c else np.repeat(picture.pixels, c, axis=-1))


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def read_grey(path: str | Path, shape: Shape, key: str) -> np.ndarray:
    """Grey images to be coloured, [n, h, w, 1] in [0, 1]: the mean of the colours of what is given."""
    return read_images(path, shape, key).mean(axis=-1, keepdims=True)


def read_low_res(path: str | Path, shape: Shape, factor: int, key: str) -> np.ndarray:
    """Small images to be enlarged, [n, h/factor, w/factor, c] in [0, 1]. Raises ValueError for any other size."""
    h, w, c = shape[0] // factor, shape[1] // factor, shape[2]
    small = []
    for picture in read_pictures(path, key):
        height, width = picture.pixels.shape[:2]
        if (height, width) != (h, w):
            raise ValueError(
                f"{key}: {picture.name} is {height} x {width} pixels; to be enlarged {factor} times to the model's "
                f"{shape[0]} x {shape[1]} it must be {h} x {w}. Reduce it, or change config.guidance.factor."
            )
        if picture.pixels.dtype == np.uint8:
            small.append(_unit(match_channels(picture.pixels, c, picture.name)))
        else:
            small.append(_unit(np.broadcast_to(picture.pixels, (h, w, c))))
    return np.stack(small)


def read_mask(path: str | Path, shape: Shape, key: str) -> np.ndarray:
    """The mask of known pixels, [h, w, 1], 1 (white) where known and 0 (black) where to paint.

    Raises ValueError for another size, for grey or coloured pixels, and where nothing or everything is known.
    """
    pictures = read_pictures(path, key)
    if len(pictures) != 1:
        raise ValueError(f"{key}: {path} holds {len(pictures)} images; give one mask, for all images.")
    picture = pictures[0]
    h, w = shape[:2]
    if picture.pixels.shape[:2] != (h, w):
        found = " x ".join(map(str, picture.pixels.shape[:2]))
        raise ValueError(
            f"{key}: {picture.name} is {found} pixels, the model draws {h} x {w}; draw the mask at that size."
        )
    mask = _unit(picture.pixels)
    if (mask != mask[..., :1]).any():
        raise ValueError(f"{key}: {picture.name} has coloured pixels; a mask is black and white.")
    mask = mask[..., :1]
    between = ((mask > 0) & (mask < 1)).sum()
    if between:
        raise ValueError(
            f"{key}: {picture.name} has {between} grey pixels; a mask is 255 (white, known) or 0 (black, to be "
            "painted). Save it as PNG, without smoothing; JPEG blurs edges."
        )
    if not mask.any() or mask.all():
        what = "black: nothing is known" if not mask.any() else "white: nothing is left to paint"
        raise ValueError(f"{key}: {picture.name} is all {what}. White marks known pixels, black those to paint.")
    return mask
