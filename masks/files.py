"""Reading and writing masks. A file is a float array (C, H, W), as published, or (H, W, C), in .npy or .npz.

Everything that could go wrong later is checked here, once: shape against the model's images, numbers, and evenness of
frequency masks. In place of a file, `--freq_mask_path` also takes `natural` (the shipped profile of photographs) and
`power:2.0` (1/f^2), drawn at the model's size.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as Pillow

from masks import profiles
from precond.diagonal import even_part

FORMAT = "mask"
VERSION = 1  # of the side file; an array without one is read as published
LARGEST_LOG_POWER = 60.0  # white images of 30 megapixels have log(1 + (h w)^2) = 34

Kind = Literal["freq", "space"]
Shape = tuple[int, int, int]  # (h, w, c)


def read_mask(path: str, kind: Kind, shape: Shape) -> np.ndarray:
    """The raw mask at `path`, float64, for images of `shape` = (h, w, c); frequency masks are made exactly even.

    A mask of another size (same channels and aspect) is resized, with a warning: a frequency mask by its radial
    profile, a space mask bilinearly.

    Raises:
      FileNotFoundError: no file; names what can be used without one.
      ValueError: another shape, a layout that could be read both ways, numbers no mask can have, an uneven spectrum, a
        side file of a newer version.
    """
    flag = f"--{kind}_mask_path={path}"
    if path == "natural" or path.startswith("power:"):
        return _drawn(path, kind, shape, flag)
    if not Path(path).exists():
        without = " In its place `natural` (shipped profile of photographs) or `power:2.0` (1/f^2) need no file."
        raise FileNotFoundError(
            f"{flag}: no such file. Estimate one with --mode=masks, from images (--config.data.source=FOLDER; 200 are "
            f"enough) or from the model's own (--from_model=64).{without if kind == 'freq' else ''}"
        )
    _check_version(Path(path), flag)
    mask = _channels_last(_load(Path(path), kind, flag), shape, flag)
    _check_values(mask, flag)
    if kind == "freq":
        mask = even_part(mask, flag)
        _check_origin(mask, flag)
    return mask if mask.shape == shape else _resized(mask, kind, shape, flag)


def _drawn(path: str, kind: Kind, shape: Shape, flag: str) -> np.ndarray:
    if kind == "space":
        raise ValueError(f"{flag}: {path!r} describes frequencies; only --freq_mask_path takes it.")
    if path == "natural":
        profile = profiles.natural_profile()
        if shape[2] != profile.power.shape[1]:
            profile = profiles.RadialProfile(profile.power.mean(axis=1, keepdims=True))
        return profiles.draw(profile, *shape)
    try:
        exponent = float(path.removeprefix("power:"))
    except ValueError:
        raise ValueError(f"{flag}: write the exponent as a number, for example power:2.0.") from None
    if not 0 <= exponent <= 8:
        raise ValueError(f"{flag}: the exponent must lie in [0, 8]; photographs have about 2 to 3.")
    return profiles.draw(profiles.power_law(exponent), *shape)


def _check_version(path: Path, flag: str) -> None:
    """Refuses a mask that a newer program wrote and described in its side file, if it has one."""
    try:
        side = json.loads(path.with_suffix(".json").read_text())
    except (FileNotFoundError, ValueError):
        return  # published masks come alone, and the file may be somebody else's
    if isinstance(side, dict) and side.get("format") == FORMAT and side.get("version") != VERSION:
        raise ValueError(
            f"{flag}: {path.with_suffix('.json')} has format version {side.get('version')}, this program reads "
            f"{VERSION}; update it, or estimate the mask again with --mode=masks."
        )


def _load(path: Path, kind: Kind, flag: str) -> np.ndarray:
    with path.open("rb") as file:
        start = file.read(6)
    if not start.startswith((b"\x93NUMPY", b"PK")):
        raise ValueError(f"{flag} begins with {start!r}, as no .npy or .npz file does. Make one with --mode=masks.")
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{flag} is not an array file ({error}). Make it with numpy.save or --mode=masks.") from error
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            keys = [kind] if kind in loaded else loaded.files
            if len(keys) != 1:
                raise ValueError(f"{flag} holds arrays {sorted(loaded.files)}; name the one to use {kind!r}.")
            loaded = loaded[keys[0]]
    if loaded.dtype.kind not in "fiu":
        raise ValueError(f"{flag} holds {loaded.dtype} numbers; a mask is a real floating-point array.")
    return loaded.astype(np.float64)


def _channels_last(mask: np.ndarray, shape: Shape, flag: str) -> np.ndarray:
    """The mask as [h', w', c], after working out which axis is which."""
    height, width, channels = shape
    stored = mask.shape
    if mask.ndim == 4 and stored[0] == 1:
        mask = mask[0]
    readings = [mask, np.moveaxis(mask, 0, -1)] if mask.ndim == 3 else []
    fitting = [reading for reading in readings if _same_but_size(reading.shape, shape)]
    if len(fitting) == 1:
        return fitting[0]
    expected = f"({channels}, {height}, {width}) or ({height}, {width}, {channels})"
    if fitting:
        raise ValueError(f"{flag} has shape {stored}, which reads as (C, H, W) and as (H, W, C) for images {expected}.")
    raise ValueError(f"{flag} has shape {stored}; the model's images need {expected}. Estimate one with --mode=masks.")


def _same_but_size(found: tuple[int, ...], shape: Shape) -> bool:
    return found[2] == shape[2] and found[0] * shape[1] == found[1] * shape[0]


def _check_values(mask: np.ndarray, flag: str) -> None:
    remedy = "Estimate it anew with --mode=masks."
    if not np.isfinite(mask).all():
        raise ValueError(
            f"{flag} holds {np.count_nonzero(~np.isfinite(mask))} values that are NaN or infinite. {remedy}"
        )
    if mask.min() < 0:
        raise ValueError(f"{flag} cannot be negative, as mean squares are not; found {mask.min():.3g}. {remedy}")
    if mask.max() == 0:
        raise ValueError(f"{flag} is zero everywhere, as if made from black images. {remedy}")


def _check_origin(mask: np.ndarray, flag: str) -> None:
    """Refuses a spectrum shifted to have zero frequency in the centre; at even sizes `even_part` cannot tell."""
    height, width = mask.shape[:2]
    strength = mask.mean(axis=-1)
    if strength[height // 2, width // 2] == strength.max() > strength[0, 0]:
        raise ValueError(
            f"{flag} is strongest at the highest frequency, [{height // 2}, {width // 2}], as if zero frequency had "
            "been moved to the centre. It belongs at [0, 0]: undo the fftshift."
        )


def _resized(mask: np.ndarray, kind: Kind, shape: Shape, flag: str) -> np.ndarray:
    warnings.warn(
        f"{flag} is for images of {mask.shape[0]}x{mask.shape[1]} and was resized to {shape[0]}x{shape[1]}; a mask "
        "estimated at that size (--mode=masks) is better.",
        stacklevel=3,
    )
    if kind == "freq":
        if mask.max() > LARGEST_LOG_POWER:
            raise ValueError(f"{flag} holds values up to {mask.max():.3g}, no log power; it cannot be resized.")
        return profiles.draw(profiles.profile_of_mask(mask), *shape)
    planes = [Pillow.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(mask, -1, 0)]
    resized = [plane.resize((shape[1], shape[0]), Pillow.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane, np.float64) for plane in resized], axis=-1)


def write_mask(path: str | Path, mask: np.ndarray, provenance: dict[str, Any]) -> None:
    """Writes a mask [h, w, c] as float32 (C, H, W) `.npy`, and beside it what it was made from.

    The side file (`.json`) holds the version of the format, `provenance` (n, data, range, formula, ...), the size and
    the SHA-256 of the array file. Both appear whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(np.moveaxis(mask, -1, 0), dtype=np.float32))
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    side = {"format": FORMAT, "version": VERSION, **provenance, "layout": "C, H, W"}
    side |= {"shape": [mask.shape[2], *mask.shape[:2]], "sha256": digest}
    side_partial = path.with_suffix(".json.partial")
    side_partial.write_text(json.dumps(side, indent=2) + "\n")
    os.replace(side_partial, path.with_suffix(".json"))
    os.replace(partial, path)
