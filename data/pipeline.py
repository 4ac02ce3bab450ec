"""From a source to training batches: crop, resize, shuffle, flip, prefetch.

Batch k is a pure function of (images, seed, k), so a run that resumes at step k needs no saved state. Images stay
uint8 until `to_model_range`, which belongs inside the compiled step.
"""

import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image as Pillow

from data.sources import Source

MEMORY_LIMIT = 4 << 30  # bytes of uint8 pixels kept in memory; larger sets are decoded on demand
THREADS = 8


def crop_and_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Centre square crop, then `size` x `size`. uint8 [h, w, c] -> uint8 [size, size, c].

    When the side is a multiple of `size` each pixel is the rounded mean of a block, which has no ringing and is exactly
    reproducible; otherwise Lanczos filtering (Pillow), which also enlarges.
    """
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    factor, remainder = divmod(side, size)
    if remainder == 0:
        blocks = image.reshape(size, factor, size, factor, -1).mean(axis=(1, 3), dtype=np.float64)
        return np.rint(blocks).astype(np.uint8)
    planes = [
        Pillow.fromarray(image[..., c]).resize((size, size), Pillow.Resampling.LANCZOS) for c in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def match_channels(image: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Grey to colour by repetition, colour to grey by luma (ITU-R 601); any other mismatch raises ValueError."""
    found = image.shape[-1]
    if found == channels:
        return image
    if found == 1 and channels == 3:
        return np.repeat(image, 3, axis=-1)
    if found == 3 and channels == 1:
        return np.asarray(Pillow.fromarray(image).convert("L"))[..., None]
    raise ValueError(
        f"Images of {name} have {found} channels, the model has {channels}; set config.data.num_channels={found}."
    )


def _load_one(source: Source, size: int, channels: int, index: int) -> tuple[np.ndarray, int]:
    example = source[index]
    image = match_channels(example["image"], channels, source.name)
    return crop_and_resize(image, size), example["label"]


@dataclasses.dataclass(frozen=True)
class OnDemandImages:
    """A data set too large for memory: images are decoded when a batch asks for them."""

    source: Source
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, size, size, channels] and labels int32 [n] at `indices`."""
        load = functools.partial(_load_one, self.source, self.size, self.channels)
        with ThreadPoolExecutor(THREADS) as pool:
            images, labels = zip(*pool.map(load, map(int, indices)), strict=True)
        return np.stack(images), np.array(labels, np.int32)


def load_images(source: Source, size: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The whole set in memory: images uint8 [n, size, size, channels], labels int32 [n]."""
    return OnDemandImages(source, size, channels).fetch(np.arange(len(source)))


def open_images(
    source: Source, size: int, channels: int = 3, memory_limit: int = MEMORY_LIMIT
) -> tuple[np.ndarray | OnDemandImages, np.ndarray | None]:
    """What `Batches` takes: the loaded set if it fits in `memory_limit` bytes, else one that decodes on demand."""
    if len(source) * size * size * channels <= memory_limit:
        return load_images(source, size, channels)
    return OnDemandImages(source, size, channels), None


@functools.lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of one epoch and a coin for each of its positions."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(count), generator.random(count) < 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Shuffled batches, epoch after epoch; a batch may straddle two epochs, and every image comes once an epoch.

    Attributes:
      images: uint8 [n, h, w, c], or images decoded on demand.
      batch_size: images a batch, any number up to what memory holds (it may exceed n).
      seed: of the order and the flips.
      flip: mirror each image left to right with probability 1/2, drawn anew each epoch.
      labels: int32 [n]; all 0 if absent. Images on demand bring their own.
    """

    images: np.ndarray | OnDemandImages
    batch_size: int
    seed: int
    flip: bool = False
    labels: np.ndarray | None = None

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1; set config.training.batch_size.")
        if not len(self.images):
            raise ValueError("The data set is empty; set config.data.source to a folder with images.")

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step` from 0: image uint8 [b, h, w, c], label int32 [b], index int64 [b] into the set."""
        count = len(self.images)
        epochs, positions = np.divmod(step * self.batch_size + np.arange(self.batch_size), count)
        indices, coins = np.empty(self.batch_size, np.int64), np.empty(self.batch_size, bool)
        for epoch in np.unique(epochs):
            order, flips = _epoch_order(count, self.seed, int(epoch))
            here = epochs == epoch
            indices[here], coins[here] = order[positions[here]], flips[positions[here]]
        if isinstance(self.images, OnDemandImages):
            images, labels = self.images.fetch(indices)
        else:
            images = self.images[indices]
            labels = (
                np.zeros(self.batch_size, np.int32) if self.labels is None else self.labels[indices].astype(np.int32)
            )
        if self.flip:
            images = np.where(coins[:, None, None, None], images[:, :, ::-1], images)
        return {"image": images, "label": labels, "index": indices}


def prefetch(batches: Batches, start_step: int = 0, depth: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """Batches start_step, start_step + 1, ... made by a thread up to `depth` ahead; its errors are raised here.

    Endless: close it (or drop the last reference) to stop the thread.
    """
    ready: queue.Queue[dict[str, np.ndarray] | BaseException] = queue.Queue(depth)
    stop = threading.Event()

    def offer(item: dict[str, np.ndarray] | BaseException) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        for step in itertools.count(start_step):
            if stop.is_set():
                return
            try:
                offer(batches.batch(step))
            except BaseException as error:  # handed to the consumer, who can report it
                return offer(error)

    threading.Thread(target=work, daemon=True, name="prefetch").start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def to_model_range(image: Any, centered: bool) -> Any:
    """uint8 pixels to float32 in [0, 1], or [-1, 1] if `centered` (`config.data.centered`). NumPy or JAX arrays."""
    unit = image.astype(np.float32) / np.float32(255)
    return 2 * unit - 1 if centered else unit
