"""Files that are either whole or not there.

A run may be killed at any moment, and a disk may fill up. Each file is written beside its place under another name and
moved there when it is complete; the move is one step for the file system, so no reader ever sees half a file.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write` with an open binary file that becomes `path` if it returns, and vanishes if it raises.

    Raises OSError naming `path` and the remedy when the disk is full; what was at `path` before is untouched.
    """
    path = Path(path)
    # The process id keeps two runs in one folder apart; a leading dot keeps `image_*.png` from matching.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"The disk is full: {path} could not be written. Files finished before it are whole. Free some space "
                "and run the same command again; it goes on where this one stopped",
            ) from error
        raise


def write_text(path: str | Path, text: str) -> None:
    """`text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))
