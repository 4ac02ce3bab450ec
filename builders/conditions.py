"""Runs whose images differ in more than noise: each has a label, an observation or a picture of its own."""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders.config import data_range, shipped
from builders.model import Model
from data import conditions
from sampling.base import Sampler


class Take(NamedTuple):
    """Which of the user's values belong to the images of a group: image i has the i-th, in turn."""

    indices: Sequence[int]  # of the images
    # How many are asked for: len(indices), or twice that many, the list repeated.
    count: int  # type: ignore[assignment]  # a tuple has a method of this name

    def __call__(self, values: Any) -> np.ndarray:
        """values [n, ...], an array or what computes its rows when asked -> [count, ...]."""
        places = [self.indices[k % len(self.indices)] % len(values) for k in range(self.count)]
        return np.asarray(values[places])


def numbered(create: Callable[[Take], Sampler]) -> Sampler:
    """The sampler of a run whose operands hold something for each image: `create(take)`, made anew for each group.

    Only what `begin` returns may depend on `take`; rows and step are those of every image, so nothing compiles twice.
    """

    def of(indices: Sequence[int]) -> Sampler:
        sampler = create(Take(indices, len(indices)))
        # The loop finds out which arrays belong to an image by asking for twice as many.
        return sampler._replace(begin=lambda keys: create(Take(indices, len(keys))).begin(keys))

    return of([0])._replace(of=of)


RANDOM_LABELS = 1 << 16  # classes that are drawn; more images go round again


def parse_labels(text: str, num_classes: int, seed: int = 0, null: int = -1) -> np.ndarray:
    """The class of each image in turn: "3,7" -> [3, 7]; "" or "uniform" -> all of them; "random" -> drawn by the seed.

    null: the class that means none, which is among those only if it is named. Raises ValueError for anything else and
    for a class there is not.
    """
    real = np.arange(num_classes, dtype=np.int32)
    real = real[real != null]
    if text in ("", "uniform"):
        return real
    if text == "random":
        return np.random.default_rng(seed).choice(real, RANDOM_LABELS).astype(np.int32)
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) >= num_classes]
    if wrong:
        raise ValueError(
            f"--labels={text!r}: {wrong[0]!r} is no class; classes are 0 to {num_classes - 1}, such as --labels=0,"
            f"{num_classes - 1}, --labels=uniform for all in turn, or --labels=random."
        )
    return np.array([int(part) for part in parts], np.int32)


def to_range(unit: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Images in [0, 1] -> in the model's data range."""
    low, high = data_range(config)
    return low + (high - low) * unit


def start_pictures(model: Model, config: ConfigDict) -> np.ndarray:
    """config.sampling.start_image at the size of the model's images, in [0, 1], [n, h, w, c]."""
    return conditions.read_images(shipped(config.sampling.start_image), model.image_shape, "--start_image")


def begin_at(sampler: Sampler, pictures: np.ndarray, scale: float) -> Sampler:
    """A deterministic sampler that begins from the user's pictures, noised, instead of pure noise.

    pictures: in the model's data range, [n, h, w, c]; scale: of the noise the sampler begins with, over start_sigma.
    """

    def of(indices: Sequence[int]) -> Sampler:
        inner = sampler.of(indices) if sampler.of else sampler

        def begin(keys):
            operands, state = inner.begin(keys)
            pictured = jnp.asarray(Take(indices, len(keys))(pictures), state.y.dtype)
            return operands, state._replace(y=pictured + state.y / scale)

        return inner._replace(begin=begin)

    return of([0])._replace(of=of)


def condition_settings(config: ConfigDict) -> dict[str, Any]:
    """What fixes the images of a conditioned run besides the other sections: its guidance, and the files it reads."""
    guidance = config.guidance
    plain = guidance.kind == "none" and guidance.cfg_scale == 1
    if plain and not config.sampling.start_image and not config.sampling.prompts:
        return {}
    files = [guidance[key] for key in ("image", "mask", "classifier", "model")]
    files += [config.sampling.start_image, config.sampling.prompts]
    return {"guidance": guidance.to_dict(), "conditions": {file: _hash(Path(shipped(file))) for file in files if file}}


def _hash(path: Path) -> str:
    """Of a file, or of the files of a folder in the order of their names."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]


def begin_from(sampler: Sampler, latents: np.ndarray, prior: float) -> Sampler:
    """A deterministic sampler that begins from given latents, [n, h, w, c] in units of `prior`, instead of noise."""

    def of(indices: Sequence[int]) -> Sampler:
        inner = sampler.of(indices) if sampler.of else sampler

        def begin(keys):
            operands, state = inner.begin(keys)
            return operands, state._replace(y=prior * jnp.asarray(Take(indices, len(keys))(latents), state.y.dtype))

        return inner._replace(begin=begin)

    return of([0])._replace(of=of)


def read_latents(config: ConfigDict, shape: tuple[int, int, int]) -> np.ndarray:
    """config.sampling.latents, float32 [n, h, w, c]. Raises FileNotFoundError, or ValueError for anything else."""
    path = Path(config.sampling.latents)
    if not path.is_file():
        raise FileNotFoundError(f"config.sampling.latents={str(path)!r} is no file; --mode=encode writes one.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            latents = np.asarray(stored["arr_0"], np.float32)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"config.sampling.latents: {path} is no .npz with an array arr_0 ({error}); --mode=encode writes one."
        ) from error
    if latents.ndim != 4 or latents.shape[1:] != shape or not np.isfinite(latents).all():
        raise ValueError(
            f"config.sampling.latents: {path} has shape {latents.shape}, the model draws {shape}; they must be finite "
            "and of that shape."
        )
    return latents
