"""Data sets prepared with TensorFlow Datasets in the array_record format, read without TensorFlow.

Only what is on this machine is read: a name that was never prepared is an error at once, never a download.
"""

import json
import os
from pathlib import Path

import numpy as np

from data.sources import Example

INFO = "dataset_info.json"
PREFIX = "tfds:"


def locate(name: str) -> Path:
    """The folder of `tfds:NAME[/CONFIG][/VERSION]` below $TFDS_DATA_DIR (default ~/tensorflow_datasets)."""
    root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folder = root / name.removeprefix(PREFIX)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"config.data.source={name}: nothing is prepared in {folder}, and nothing is downloaded from here. Run "
            f"tfds.builder({name.removeprefix(PREFIX)!r}, file_format='array_record').download_and_prepare() where "
            "there is a network, or set config.data.source to a folder or zip of images."
        )
    return folder


def version_folder(path: Path) -> Path | None:
    """`path`, or the newest version below it, that holds a prepared data set; None if there is none.

    Raises ValueError when several configs are prepared there.
    """
    found = [file.parent for pattern in (INFO, f"*/{INFO}", f"*/*/{INFO}") for file in path.glob(pattern)]
    if len({folder.parent for folder in found}) > 1:
        names = sorted(str(folder.relative_to(path)) for folder in found)
        raise ValueError(f"{path} holds several prepared data sets, {names}; set config.data.source to one of them.")
    return max(found, key=_version, default=None)


def _version(folder: Path) -> tuple[int, ...]:
    numbers = folder.name.split(".")
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()


class TfdsRecords:
    """One split of a prepared data set: feature "image", uint8 [h, w, c], and "label" where there is one."""

    def __init__(self, folder: Path, split: str):
        self.name = f"{folder}[{split}]"
        info = json.loads((folder / INFO).read_text())
        if info.get("fileFormat") != "array_record":
            raise ValueError(
                f"{folder} is prepared as {info.get('fileFormat', 'tfrecord')}, which only TensorFlow reads. Prepare "
                "it with file_format='array_record', or pack its images with --mode=prepare."
            )
        splits = [entry["name"] for entry in info["splits"]]
        if split not in splits:
            raise ValueError(f"{folder} has splits {splits}, not {split!r}; set config.data.split.")
        import tensorflow_datasets as tfds

        try:
            self._records = tfds.builder_from_directory(folder).as_data_source(split=split)
        except ImportError as error:
            raise ImportError(
                f"{folder} is in the array_record format, and array_record is not installed; it exists for Linux and "
                "macOS. Elsewhere use a folder or zip of images."
            ) from error
        example = self[0]
        if example["image"].dtype != np.uint8 or example["image"].ndim != 3:
            kind = f"{example['image'].dtype} {example['image'].shape}"
            raise ValueError(f"{folder}: feature 'image' is {kind}; it must be uint8 [h, w, c].")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        if "image" not in record:
            raise ValueError(f"{self.name} has features {sorted(record)}; an 'image' is needed.")
        return {"image": record["image"], "label": int(record.get("label", 0))}
