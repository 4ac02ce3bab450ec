"""Packs a data set once, cropped and resized: an array_record folder that TensorFlow Datasets reads without TensorFlow.

Shards are written one by one, each whole or not at all, into `<out_dir>.incomplete`, which takes its final name when
all are there. A run that was stopped goes on with the first missing shard.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from data.pipeline import OnDemandImages
from data.sources import Source

SHARD_BYTES = 64 << 20  # of pixels
NAME, VERSION, SPLIT = "images", "1.0.0", "train"
SETTINGS = "prepared_from.json"


def prepare(source: Source, size: int, out_dir: str | Path, channels: int = 3) -> Path:
    """Writes all images of `source` at `size` x `size` to `out_dir` and returns it; index and label stay the same.

    Does nothing if that was done before. Raises ValueError if `out_dir` holds something else.
    """
    out_dir = Path(out_dir)
    settings = {"source": source.name, "n": len(source), "size": size, "channels": channels}
    if out_dir.exists():
        _check_settings(out_dir, settings)
        return out_dir
    partial = out_dir.with_name(out_dir.name + ".incomplete")
    if partial.exists():
        _check_settings(partial, settings)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    _write(OnDemandImages(source, size, channels), partial)
    os.replace(partial, out_dir)
    return out_dir


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / SETTINGS
    found = json.loads(file.read_text()) if file.exists() else None
    if found != settings:
        raise ValueError(f"{folder} was made from {found}, not from {settings}. Remove it or choose another folder.")


def _write(images: OnDemandImages, folder: Path) -> None:
    import tensorflow_datasets as tfds

    try:
        from array_record.python.array_record_module import ArrayRecordWriter
    except ImportError as error:
        raise ImportError(
            "--mode=prepare writes array_record files, and array_record is not installed; it exists for Linux and "
            "macOS. Elsewhere use the folder or zip of images as it is."
        ) from error

    shape = (images.size, images.size, images.channels)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Tensor(shape=shape, dtype=np.uint8), "label": tfds.features.Scalar(dtype=np.int64)}
    )
    length = max(1, SHARD_BYTES // int(np.prod(shape)))
    starts = range(0, len(images), length)
    for shard, start in enumerate(starts):
        path = folder / f"{NAME}-{SPLIT}.array_record-{shard:05d}-of-{len(starts):05d}"
        if path.exists():
            continue
        unfinished = folder / "shard.partial"
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        pixels, labels = images.fetch(np.arange(start, min(start + length, len(images))))
        for image, label in zip(pixels, labels, strict=True):
            writer.write(features.serialize_example({"image": image, "label": label}))
        writer.close()
        os.replace(unfinished, path)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[min(length, len(images) - start) for start in starts],
        num_bytes=len(images) * int(np.prod(shape)),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[split],
        version=VERSION,
        filename_template=template,
        check_data=False,
        description=f"Images of {images.source.name} at {images.size} px.",
    )
