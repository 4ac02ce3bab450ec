"""Images in an LMDB database, as LSUN is distributed: a key per image, an encoded image (webp, png, jpeg) as its value.

Needs the package `lmdb` (extra "lmdb"). Images come in the order of their keys, which LMDB keeps sorted.
"""

from pathlib import Path
from typing import Any

from data.sources import Example, decode_image

# How encoded images begin: PNG, JPEG, RIFF (webp), GIF, BMP, TIFF.
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


def is_lmdb(path: Path) -> bool:
    """Whether `path` is an LMDB environment: a folder with data.mdb, or such a file."""
    return (path / "data.mdb").is_file() if path.is_dir() else path.suffix in (".mdb", ".lmdb")


class LmdbImages:
    """The values of an LMDB that are images; entries of another kind, such as a `length`, are left out. No labels."""

    def __init__(self, path: Path):
        """Opens `path`, a folder with data.mdb or the file itself, and lists its keys.

        Raises ImportError without the package, ValueError where it is no database or holds no image.
        """
        try:
            import lmdb
        except ImportError as error:
            raise ImportError(
                f"{path} is an LMDB, which needs the package lmdb, an extra of this project: pip install '.[lmdb]'. "
                "Or export the images into a folder or zip."
            ) from error
        self.name = str(path)
        try:
            # Without a lock file, so that read-only media work; nothing else writes a data set that is being read.
            self._environment: Any = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False)
        except lmdb.Error as error:
            raise ValueError(f"{path} cannot be opened as an LMDB ({error}). Download it again.") from error
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            self.keys = [bytes(key) for key, value in cursor if bytes(value[:4]).startswith(_MAGIC)]
        if not self.keys:
            raise ValueError(f"{path} holds no encoded images (png, jpeg, webp). Point config.data.source at images.")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Example:
        key = self.keys[index]
        with self._environment.begin() as transaction:
            content = transaction.get(key)
        return {"image": decode_image(content, f"{self.name}/{key.decode(errors='replace')}"), "label": 0}
