"""A data set in the latents of a codec: encoded once, kept in a file that is mapped into memory, drawn from.

Kept are the moments of q(z | x), so that each time an image comes a latent is drawn from its Gaussian anew, as the
codec's decoder was trained to see them. The encoding of a mirrored image is not the mirrored encoding; so where images
are mirrored in training, the mirror of each is a row of its own.
"""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import checkpoints
from array_types import Keys
from builders import autoencoder as codecs
from builders import latent_parts
from builders.config import shipped
from builders.latent import create_codec, refuse_conditions
from builders.training import create_batches
from data.pipeline import Batches
from models.latent import Codec
from reports.atomic import write_text
from reports.progress import Progress
from training import autoencoder
from training.state import STATE_FILE

DRAW = 2  # of an image's key, which the loss splits into 0 and 1
CHUNK = 64  # images encoded between two looks at the disk


class Latents(NamedTuple):
    """What a network on latents is trained with.

    Attributes:
      batches: of moments [b, h, w, 2c] (of latents [b, h, w, c] where the codec has no spread) under the name "image".
      codec: with the scale that makes latents of unit standard deviation.
      parts: the codec's parameters, for the file of the model.
      config: of the model that results: with that scale, and its codec in its own file.
    """

    batches: Batches
    codec: Codec
    parts: dict[str, Any]
    config: ConfigDict

    def draw(self, moments: jax.Array, keys: Keys) -> jax.Array:
        """What diffusion sees, [b, h, w, c], drawn with one key an image."""
        own = jax.vmap(lambda key: jax.random.fold_in(key, DRAW))(keys)
        z = autoencoder.draw(moments, own) if moments.shape[-1] == 2 * self.config.data.num_channels else moments
        return (z - self.codec.shift) * self.codec.scale_factor


def open_latents(config: ConfigDict, workdir: Path, checkpoint: str = "") -> Latents:
    """The training images of config.data in the latents of config.latent's codec.

    The codec is that of config.latent.checkpoint, of `checkpoint`, or the one that was trained in the work directory.
    config.latent.scale_factor=0 is replaced by 1/std of the encoded data set. The moments are kept in W/latents; what
    was encoded by the same codec from the same images is used again.

    Raises FileNotFoundError where there is no codec; ValueError for a model that is told prompts or classes as context,
    and where the work directory holds a network that is half trained on latents of other images or another codec.
    """
    refuse_conditions(config)
    path = find_codec(config, workdir, checkpoint)
    stored = checkpoints.read(path)
    module, params = latent_parts.load_codec(stored, config)
    images = create_batches(config)
    moments = _encoded(module, params, stored, images, _file(workdir), config)
    full = copy.deepcopy(config)
    if not full.latent.scale_factor:
        full.latent.scale_factor = 1 / standard_deviation(moments, config.data.num_channels)
        logging.info("config.latent.scale_factor=%.6g: latents have standard deviation 1.", full.latent.scale_factor)
    full.latent.checkpoint = ""
    labels = images.labels if images.labels is None or not images.flip else np.tile(images.labels, 2)
    batches = Batches(moments, config.training.batch_size, config.seed, False, labels)
    return Latents(batches, create_codec(full, module, params), {"vae": params}, full)


def find_codec(config: ConfigDict, workdir: Path, checkpoint: str = "") -> Path:
    """The file of the codec. Raises FileNotFoundError that says how to make one."""
    named = shipped(config.latent.checkpoint) or checkpoint
    path = Path(named) if named else workdir / codecs.FILE
    if not path.exists():
        raise FileNotFoundError(
            f"There is no codec {path}: name one with --config.latent.checkpoint=FILE, or train one in this --workdir "
            "first, with --config FILE.py:autoencoder."
        )
    return path


def standard_deviation(moments: np.ndarray, channels: int) -> float:
    """Of all values of latents drawn from moments [n, h, w, 2c]: sqrt(Var m + E v); of [n, h, w, c] their own."""
    total = square = spread = 0.0
    for start in range(0, len(moments), CHUNK):
        part = np.asarray(moments[start : start + CHUNK], np.float64)
        mean, logvar = part[..., :channels], part[..., channels:]
        total, square = total + mean.sum(), square + np.square(mean).sum()
        spread += np.exp(logvar).sum() if logvar.size else 0.0
    count = len(moments) * moments[0].size // moments.shape[-1] * channels
    return float(np.sqrt(square / count - (total / count) ** 2 + spread / count))


def _file(workdir: Path) -> Path:
    """Each of several processes keeps its own."""
    return workdir / "latents" / ("moments.npy" if jax.process_count() == 1 else f"moments_{jax.process_index()}.npy")


def _encoded(
    module: Any, params: Any, stored: checkpoints.Checkpoint, images: Batches, path: Path, config: ConfigDict
) -> np.ndarray:
    """The moments of all images, then of their mirrors if they are mirrored in training: mapped, float32."""
    facts = {"codec": stored.sha256(), "images": len(images.images), "mirrored": images.flip}
    facts |= {"source": config.data.source, "holdout": config.data.holdout}
    told = path.with_suffix(".json")
    if not (path.exists() and told.exists() and json.loads(told.read_text()) == facts):
        if (state := path.parent.parent / STATE_FILE).exists():
            raise ValueError(
                f"{state} is of a network on latents of other images or of another codec than {stored.path} and this "
                "config name; use another --workdir or delete it."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        told.unlink(missing_ok=True)
        _encode(module, params, images, path)
        write_text(told, json.dumps(facts))
    return np.load(path, mmap_mode="r")


def _encode(module: Any, params: Any, images: Batches, path: Path) -> None:
    rows = len(images.images) * (2 if images.flip else 1)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    target: np.ndarray | None = None
    try:
        with Progress(rows, "encoding images", "image") as progress:
            start = 0
            for part in _chunks(images):
                found = codecs.moments_of(module, params, part)
                if target is None:
                    target = np.lib.format.open_memmap(temporary, "w+", np.float32, (rows, *found.shape[1:]))
                target[start : start + len(found)] = found
                start += len(found)
                progress.update(len(found))
        assert isinstance(target, np.memmap)
        target.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(images: Batches) -> Iterator[np.ndarray]:
    """uint8 [n, h, w, c]: all images in order, then all of them mirrored if `images.flip`."""
    for mirrored in (False, True)[: 2 if images.flip else 1]:
        for start in range(0, len(images.images), CHUNK):
            indices = np.arange(start, min(start + CHUNK, len(images.images)))
            source = images.images
            part = source[indices] if isinstance(source, np.ndarray) else source.fetch(indices)[0]
            yield part[:, :, ::-1] if mirrored else part
