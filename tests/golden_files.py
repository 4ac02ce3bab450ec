"""Recorded files of independent programs; the large ones are kept as .xz or .gz and unpacked once a process."""

import atexit
import functools
import gzip
import lzma
import shutil
import tempfile
from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"
UNPACK = {".gz": gzip.decompress, ".xz": lzma.decompress}


@functools.cache
def golden_folder(area: str) -> Path:
    """The folder tests/goldens/<area> with every file as its program wrote it."""
    packed = GOLDENS / area
    unpacked = Path(tempfile.mkdtemp(prefix=f"goldens-{area.replace('/', '-')}-"))
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    for path in packed.rglob("*"):
        target = unpacked / path.relative_to(packed)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in UNPACK:
            target.with_suffix("").write_bytes(UNPACK[path.suffix](path.read_bytes()))
        elif path.is_file():
            shutil.copyfile(path, target)
    return unpacked
