"""Image data sets: `create_source` opens one by its content, `data.pipeline` makes batches of it."""

import zipfile
from pathlib import Path

from data.sources import NpzImages, Source, open_folder, open_zip


def create_source(path: str | Path) -> Source:
    """The images at `path`: a folder of images, a zip of images, or an .npz of uint8 arrays, told by content.

    Raises FileNotFoundError if nothing is there and ValueError if it holds no images; both name `config.data.source`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No data at {path}: set config.data.source to a folder, zip or npz of images.")
    if path.is_dir():
        return open_folder(path)
    if path.suffix == ".npz":
        return NpzImages(path)
    if zipfile.is_zipfile(path):
        return open_zip(path)
    raise ValueError(f"{path} is neither a folder, a zip nor an npz of images; set config.data.source to one of these.")
