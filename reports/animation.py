"""A sampler at work, as a short film: WebP (small and quick to write), or GIF where a page cannot show WebP."""

from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from reports.atomic import write_atomically
from reports.images import to_pillow

Frames = UInt8[ndarray, "n h w c"]

_FORMATS: dict[str, dict[str, Any]] = {".webp": {"format": "WEBP", "quality": 85}, ".gif": {"format": "GIF"}}


def write_animation(path: str | Path, frames: Frames, frame_ms: int = 80, hold_ms: int = 2000) -> None:
    """Writes frames [n, h, w, c], `frame_ms` milliseconds each and the last one `hold_ms`, repeating forever.

    Frames may be grids (`grids.image_grid` of each step). The suffix of `path` chooses .webp or .gif.

    Raises ValueError for another suffix or for no frames.
    """
    path = Path(path)
    if path.suffix not in _FORMATS or not len(frames):
        raise ValueError(
            f"{path} of {len(frames)} frames cannot be written: name it {' or '.join(sorted(_FORMATS))} and pass at "
            "least one frame."
        )
    pictures = [to_pillow(frame).convert("RGB") for frame in frames]
    durations = [frame_ms] * (len(pictures) - 1) + [hold_ms]
    settings = {"append_images": pictures[1:], "duration": durations, "loop": 0, **_FORMATS[path.suffix]}
    write_atomically(path, lambda file: pictures[0].save(file, save_all=True, **settings))
