"""Image data sets: `create_source` opens one by its content, `data.pipeline` makes batches of it."""

import zipfile
from pathlib import Path

from data import tfds_records, tfrecords
from data.lmdb_images import LmdbImages, is_lmdb
from data.sources import NpzImages, Source, open_folder, open_zip


def create_source(path: str | Path | Source, split: str = "") -> Source:
    """The images at `path` (`config.data.source`), told by content:

    a folder or zip of images (class folders or dataset.json give labels), an .npz of uint8 arrays, TFRecord files of
    uint8 images, an LMDB of encoded images (as LSUN's), a folder prepared by TensorFlow Datasets as array_record, or
    `tfds:name` for one of those by name.

    `split` selects a split of the last two ("" is "train"); the others have none. A source that is open is returned.
    Raises FileNotFoundError if nothing is there and ValueError if it holds no images or has no such split.
    """
    if not isinstance(path, str | Path):
        return path
    if str(path).startswith(tfds_records.PREFIX):
        path = tfds_records.locate(str(path))
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No data at {path}: set config.data.source to a folder, zip or npz of images.")
    prepared = tfds_records.version_folder(path) if path.is_dir() else None
    if prepared:
        return tfds_records.TfdsRecords(prepared, split or "train")
    if split:
        raise ValueError(f"config.data.split={split!r}: {path} has no splits; give each split its own path.")
    if is_lmdb(path):
        return LmdbImages(path)
    if path.is_dir():
        has_records = any(file.is_file() and "tfrecord" in file.name for file in path.iterdir())
        return tfrecords.open_tfrecords(path) if has_records else open_folder(path)
    if zipfile.is_zipfile(path):
        return NpzImages(path) if path.suffix == ".npz" else open_zip(path)
    if tfrecords.is_tfrecord(path):
        return tfrecords.open_tfrecords(path)
    raise ValueError(
        f"{path} is no folder, zip, npz or TFRecord file of images; set config.data.source to one of these."
    )
