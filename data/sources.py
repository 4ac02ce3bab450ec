"""Where images come from: folders, zip archives and npz files, all read the same way.

A source is a random-access list of examples {"image": uint8 [h, w, c], "label": int}. Images keep their stored size and
their channels (1 for grey, 3 for everything else); `data.pipeline` crops, resizes and mends channels. The order is the
sorted order of the names, so that an index means the same image on every machine. Reading is safe from several threads.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LABEL_FILE = "dataset.json"


class Example(TypedDict):
    image: np.ndarray  # uint8 [h, w, c]
    label: int


@runtime_checkable
class Source(Protocol):
    """A data set of images. `name` says where it came from, for messages and provenance."""

    name: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class Without:
    """A source less every `holdout`-th example, from the first on: what is left to train on."""

    def __init__(self, source: Source, holdout: int):
        if holdout < 2:
            raise ValueError(f"config.data.holdout={holdout} must be 0 (none) or at least 2.")
        self.name, self._source = source.name, source
        self._indices = [index for index in range(len(source)) if index % holdout]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]


def decode_image(content: bytes, name: str) -> np.ndarray:
    """The pixels of one encoded image, upright, uint8 [h, w, 1] if grey and [h, w, 3] otherwise (alpha is dropped).

    Raises ValueError naming the image when it is not one, or is cut off or corrupt.
    """
    try:
        with Pillow.open(io.BytesIO(content)) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I;16"):
                return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"{name} cannot be read as an image ({error}). Repair or remove it.") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(SUFFIXES)


def _labels_from_json(content: bytes, names: list[str], where: str) -> np.ndarray:
    """Labels of an EDM archive: dataset.json holds {"labels": [[name, class], ...]}, or null for none."""
    pairs = json.loads(content).get("labels")
    if pairs is None:
        return np.zeros(len(names), np.int32)
    labels = dict(pairs)
    missing = [name for name in names if name not in labels]
    if missing:
        raise ValueError(
            f"{where} has no label for {len(missing)} images, first {missing[0]}. Add them or remove the file."
        )
    values = np.array([labels[name] for name in names])
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{where}: labels must be whole numbers, one an image; {names[0]} has {labels[names[0]]!r}.")
    return values.astype(np.int32)


def _labels_from_folders(names: list[str]) -> np.ndarray:
    """The rank of an image's top folder among all top folders; all 0 when some image lies in none."""
    tops = [name.rpartition("/")[0].partition("/")[0] for name in names]
    if "" in tops:
        return np.zeros(len(names), np.int32)
    return np.unique(tops, return_inverse=True)[1].astype(np.int32)


class ImageFiles:
    """Encoded images in a folder or a zip archive (stored or deflated), in the sorted order of their paths.

    Labels come from `dataset.json` where there is one (EDM's layout), otherwise from the top folder: class folders in
    sorted order are 0, 1, ... Hidden files and files without an image suffix are not part of the set.
    """

    def __init__(self, path: Path, names: list[str], read: Callable[[str], bytes]):
        self.name = str(path)
        self.names = sorted(filter(_is_image, names))
        self._read = read
        if not self.names:
            found = f"it holds {len(names)} other files, such as {sorted(names)[0]}" if names else "it is empty"
            raise ValueError(
                f"{path} holds no images ({', '.join(SUFFIXES)}): {found}. Point config.data.source at images."
            )
        if LABEL_FILE in names:
            self.labels = _labels_from_json(read(LABEL_FILE), self.names, f"{path}/{LABEL_FILE}")
        else:
            self.labels = _labels_from_folders(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        image = decode_image(self._read(name), f"{self.name}/{name}")
        return {"image": image, "label": int(self.labels[index])}


def open_folder(path: Path) -> ImageFiles:
    """All images below a folder."""
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return ImageFiles(path, names, lambda name: (path / name).read_bytes())


def open_zip(path: Path) -> ImageFiles:
    """All images in a zip archive; the archive stays open as long as the source lives."""
    archive = zipfile.ZipFile(path)

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}/{name} is damaged ({error}). Download the archive again.") from error

    return ImageFiles(path, [name for name in archive.namelist() if not name.endswith("/")], read)


class NpzImages:
    """uint8 images [n, h, w, c] in an .npz: `arr_0` as in ADM's batches, `samples` as score_sde writes, or `images`.

    Labels [n] are taken from `arr_1`, `labels` or `label` when one is there, else 0.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        with np.load(path) as arrays:
            keys = [key for key in ("arr_0", "samples", "images") if key in arrays]
            if not keys:
                raise ValueError(
                    f"{path} has arrays {sorted(arrays)}, none called arr_0, samples or images. Rename one."
                )
            self.images = arrays[keys[0]]
            label_keys = [key for key in ("arr_1", "labels", "label") if key in arrays]
            self.labels = arrays[label_keys[0]].reshape(-1) if label_keys else np.zeros(len(self.images), np.int32)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or not len(self.images):
            raise ValueError(
                f"{path}: {keys[0]} is {self.images.dtype} {self.images.shape}; images must be uint8 [n, h, w, c]."
            )
        if len(self.labels) != len(self.images):
            raise ValueError(f"{path}: {len(self.labels)} labels for {len(self.images)} images; one each is needed.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.images[index], "label": int(self.labels[index])}
