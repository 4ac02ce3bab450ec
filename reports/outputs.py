"""The folder of a run: `image_<index>.png`, `samples_<shard>.npz`, `grid.png` and `run.json`.

The PNGs are the state of the run. A run that was killed and started again asks which are missing and draws those;
nothing else has to be remembered. That is only right if the settings are the same, so `run.json` holds whatever fixes
the pixels (`settings`) and a folder made with other settings is refused. What does not fix them (versions, seconds,
the command) is kept as one entry a session.
"""

import functools
import json
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from reports.atomic import write_atomically, write_text
from reports.grids import image_grid
from reports.images import ByteImage, ByteImages, png_shape, read_png, write_png

RECORD = "run.json"
SHARD_BYTES = 1 << 28  # of pixels in one samples_<shard>.npz

_IMAGE_NAME = re.compile(r"image_(\d+)\.png")
_WORKERS = 4
_MOST_PENDING = 64  # images waiting to be written; beyond that the sampler waits


class RunFolder:
    """The images of one run, written in the background. Use as a context manager; leaving it waits for the writes.

    One run writes a folder at a time. Two at once do no harm to the images (equal settings give equal files) but lose
    one of the two session entries. Of several processes that share a run, one keeps the record.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        session: Mapping[str, Any] | None = None,
        keeps_record: bool = True,
    ):
        """Opens or creates the folder.

        Args:
          path: W/<eval_folder>.
          settings: everything that fixes the pixels of image i: config, method, seed, hash of the weights. Nested
            mappings of JSON values; NumPy numbers are taken too.
          session: what else to record of this process: command, versions, device.
          keeps_record: whether this process writes run.json and, in the end, shards and grid.

        Raises:
          ValueError: the folder holds a run with other settings (named), or images without a record.
          OSError: the folder cannot be made or written.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno, f"The output folder {path} cannot be made ({error.strerror}); choose another --workdir"
            ) from error
        self._record = self._open_record(_plain(settings))
        if keeps_record:
            self._record["sessions"].append(
                {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **_plain(session or {}), "finished": False}
            )
            self._save_record()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="png")
        self._pending: deque[Future[None]] = deque()
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.flush()

    def image_path(self, index: int) -> Path:
        """Where image `index` is, or will be."""
        return self.path / f"image_{index}.png"

    def missing(self, indices: Iterable[int], shape: tuple[int, int, int]) -> list[int]:
        """Those of `indices` whose PNG is not there, is damaged, or is not of `shape` (h, w, c)."""
        return [index for index in indices if png_shape(self.image_path(index)) != shape]

    def write(self, index: int, image: ByteImage, text: Mapping[str, object] | None = None) -> None:
        """Hands image `index` (uint8 [h, w, c]) to the writers, with `text` to store inside the PNG.

        Raises what an earlier write raised (a full disk, say); waits while too many images are under way.
        """
        self._collect(_MOST_PENDING)
        self._pending.append(self._pool.submit(write_png, self.image_path(index), image, text))

    def flush(self) -> None:
        """Waits until every image handed in is on disk; raises the first error of the writers."""
        self._collect(0)

    def finish(self, result: Mapping[str, Any], caption: str = "", grid_images: int = 64) -> None:
        """Writes the shards and the grid of all whole images in the folder, and closes the record of this session.

        Args:
          result: calls, gradient_calls, seconds = {"compile": ..., "steady": ...} and what else belongs to this
          session. caption: below the grid of the first `grid_images` images.
        """
        self.flush()
        indices = self.indices()
        write_shards(self.path, indices)
        if indices:
            images = np.stack([read_png(self.image_path(index)).image for index in indices[:grid_images]])
            grid = image_grid(images, caption=caption)
            write_png(self.path / "grid.png", grid)
        self._record["sessions"][-1] |= {**_plain(result), "images_written": self._written, "finished": True}
        self._record["images"] = len(indices)
        self._save_record()

    def indices(self) -> list[int]:
        """Indices of the whole images in the folder, ascending."""
        names = (_IMAGE_NAME.fullmatch(entry.name) for entry in self.path.iterdir())
        found = sorted(int(name[1]) for name in names if name)
        return [index for index in found if png_shape(self.image_path(index))]

    @property
    def record(self) -> dict[str, Any]:
        """What run.json holds: settings, sessions, images."""
        return json.loads(json.dumps(self._record))

    def _collect(self, most_pending: int) -> None:
        while self._pending and (len(self._pending) > most_pending or self._pending[0].done()):
            self._pending.popleft().result()
            self._written += 1

    def _save_record(self) -> None:
        write_text(self.path / RECORD, json.dumps(self._record, indent=1) + "\n")

    def _open_record(self, settings: dict[str, Any]) -> dict[str, Any]:
        path = self.path / RECORD
        if not path.exists():
            strangers = [entry.name for entry in self.path.iterdir() if _IMAGE_NAME.fullmatch(entry.name)]
            if strangers:
                raise ValueError(
                    f"{self.path} holds {len(strangers)} images ({strangers[0]}) but no {RECORD}, so it is not known "
                    "how they were made. Choose another --eval_folder, or move them away."
                )
            return {"settings": settings, "sessions": [], "images": 0}
        try:
            record = json.loads(path.read_text())
            differences = _differences(record["settings"], settings)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no record of a run ({error}). Choose another --eval_folder, or delete {self.path}."
            ) from error
        if differences:
            raise ValueError(
                f"{self.path} holds a run with other settings: {'; '.join(differences)}. Images of two settings in one "
                f"folder could not be told apart: choose another --eval_folder, or delete {self.path}."
            )
        return record


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What fixes the pixels of the run in `folder`, finished or not. Raises ValueError for a file that says nothing."""
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a run ({error}).") from error


def read_run(folder: str | Path) -> tuple[ByteImages, dict[str, Any]]:
    """The images of a finished run, uint8 [n, h, w, c] in the order of their indices, and its record.

    Raises FileNotFoundError when there is no run, ValueError when it is unfinished, unreadable, or its images differ in
    size: what is measured must be one set of images, made with one set of settings.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"There is no run in {folder} (no {RECORD}); draw images first, or name --eval_folder.")
    try:
        record = json.loads((folder / RECORD).read_text())
        sessions = record["sessions"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RECORD} is no record of a run ({error}).") from error
    matches = (_IMAGE_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    indices = sorted(int(match[1]) for match in matches if match)
    if not sessions or not sessions[-1].get("finished") or len(indices) != record["images"]:
        raise ValueError(
            f"The run in {folder} is not finished: {len(indices)} images are there and its record speaks of "
            f"{record.get('images')}. Run the same --mode=sample command again; it draws what is missing."
        )
    if not indices:
        raise ValueError(f"The run in {folder} has no images.")
    shape = read_png(folder / f"image_{indices[0]}.png").image.shape
    return _read_images(folder, indices, shape), record


def write_shards(folder: str | Path, indices: Iterable[int], shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Packs `image_<index>.png` into samples_0.npz, samples_1.npz, ...: arr_0 uint8 [n, h, w, c], and their index [n].

    That is the layout the ADM evaluator reads. Shards hold at most `shard_bytes` of pixels, and at least one image;
    those left from a longer list are removed. Raises ValueError if the images differ in size.
    """
    folder, indices = Path(folder), list(indices)
    paths: list[Path] = []
    if indices:
        shape = read_png(folder / f"image_{indices[0]}.png").image.shape
        size = max(1, shard_bytes // int(np.prod(shape)))
        for start in range(0, len(indices), size):
            members = indices[start : start + size]
            paths.append(folder / f"samples_{len(paths)}.npz")
            images = _read_images(folder, members, shape)
            write_atomically(paths[-1], functools.partial(np.savez, arr_0=images, index=np.array(members)))
    for stale in folder.glob("samples_*.npz"):
        if stale not in paths:
            stale.unlink()
    return paths


def _read_images(folder: Path, indices: list[int], shape: tuple[int, ...]) -> ByteImages:
    images = np.empty((len(indices), *shape), np.uint8)
    for row, index in enumerate(indices):
        image = read_png(folder / f"image_{index}.png").image
        if image.shape != shape:
            raise ValueError(
                f"{folder}/image_{index}.png is {image.shape} and its neighbours are {shape}: two runs are mixed. "
                "Choose another --eval_folder, or delete the odd images."
            )
        images[row] = image
    return images


def _plain(value: Any) -> Any:
    """`value` as JSON will return it, so that what is compared is what was stored."""
    return json.loads(
        json.dumps(value, default=lambda other: other.tolist() if hasattr(other, "tolist") else str(other))
    )


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """ "config.sampling.alpha is 5.0 there and 2.0 here", one an unequal leaf."""
    there, here = _leaves(stored), _leaves(asked)
    unequal = [key for key in sorted({*there, *here}) if there.get(key, _ABSENT) != here.get(key, _ABSENT)]
    return [f"{key} is {there.get(key, _ABSENT)!r} there and {here.get(key, _ABSENT)!r} here" for key in unequal]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        leaves |= _leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves
