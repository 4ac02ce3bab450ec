"""Readers of pretrained weights; `read` tells the format by what is in the file, never by its name."""

from pathlib import Path

from checkpoints import compvis, diffusers, edm_pickle, flax_msgpack, native, torch_layouts, torch_pickle
from checkpoints.base import Checkpoint, map_file
from checkpoints.pickle_data import RefusedPickle
from checkpoints.safetensors_file import is_safetensors
from checkpoints.torch_pickle import LEGACY_MAGIC, ZIP_MAGIC


def read(path: Path | str) -> Checkpoint:
    """Reads a weight file, or a diffusers folder, of any supported format. Nothing in the file is executed.

    Raises: FileNotFoundError; ValueError for another format, damage, or a pickle with foreign names.
    """
    path = Path(path)
    if path.is_dir():
        return diffusers.read(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}; name a weight file or a diffusers folder (--checkpoint).")
    head = bytes(map_file(path)[:64])
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    legacy = LEGACY_MAGIC.to_bytes(10, "little") in head
    if head.startswith(ZIP_MAGIC) or (pickled and legacy):
        return _read_torch(path)
    if pickled:
        return edm_pickle.read(path)
    if is_safetensors(head):
        found = native.read(path)
        return compvis.arrange(found.raw, path) if compvis.is_latent(found.raw) else found
    if b"\x81" <= head[:1] <= b"\x8f" and b"\xa1" <= head[1:2] <= b"\xbf":  # msgpack: a small map, a short string
        return flax_msgpack.read(path)
    raise ValueError(
        f"{path} begins with {head[:8]!r}, which no supported format does: torch (.pth, .pt), EDM .pkl, Flax msgpack, "
        "safetensors. An interrupted download or a web page saved in its place looks like this."
    )


def _read_torch(path: Path) -> Checkpoint:
    """A file of `torch.save`; only latent models may hold objects of other programs."""
    try:
        tree = torch_pickle.load(path)
    except RefusedPickle:
        if (found := compvis.find(path)) is None:
            raise
        return found
    return compvis.of_tree(tree, path) or torch_layouts.of_tree(tree, path)
