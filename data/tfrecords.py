"""TFRecord files of uint8 images, read without TensorFlow.

A TFRecord is a chain of records: length (uint64), masked CRC-32C of the length, content, masked CRC-32C of the content.
Each content is a protocol buffer `tf.train.Example`, a map from names to lists. The layout read here is that of the
FFHQ and CelebA-HQ files of score_sde and StyleGAN: "shape" = [c, h, w] and "data" = the uint8 pixels in that order.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.sources import Example

_HEADER = struct.Struct("<QI")  # length, its checksum
_FOOTER = 4  # checksum of the content; not verified, a byte-wise loop in Python would take seconds an image
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def masked_crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TFRecord files store it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _length(header: bytes) -> int | None:
    """The length a record's header announces, None if the header is not one."""
    if len(header) < _HEADER.size:
        return None
    length, checksum = _HEADER.unpack(header)
    return length if checksum == masked_crc32c(header[:8]) else None


def is_tfrecord(path: Path) -> bool:
    """Does the file start with a TFRecord header?"""
    with path.open("rb") as file:
        return _length(file.read(_HEADER.size)) is not None


def _offsets(path: Path) -> list[tuple[int, int]]:
    """(start, length) of the content of every record. Raises ValueError where the chain is broken."""
    offsets: list[tuple[int, int]] = []
    position, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            length = _length(file.read(_HEADER.size))
            start = position + _HEADER.size
            if length is None or start + length + _FOOTER > size:
                raise ValueError(f"{path} is damaged or cut off after record {len(offsets)}. Download it again.")
            offsets.append((start, length))
            position = start + length + _FOOTER
    return offsets


def _varint(buffer: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _fields(buffer: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (field number, value) pairs of a protocol buffer message."""
    position = 0
    while position < len(buffer):
        tag, position = _varint(buffer, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(buffer, position)
            yield number, value
        elif wire in (_BYTES, _FIXED64, _FIXED32):
            length, position = _varint(buffer, position) if wire == _BYTES else ({1: 8, 5: 4}[wire], position)
            yield number, buffer[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {wire}")


def _message(buffer: bytes, number: int) -> list[bytes]:
    """All length-delimited values of one field."""
    return [value for found, value in _fields(buffer) if found == number and isinstance(value, bytes)]


def parse_example(content: bytes) -> dict[str, bytes | list[int]]:
    """The features of a `tf.train.Example` that hold one byte string or a list of integers; floats are left out."""
    features: dict[str, bytes | list[int]] = {}
    for feature_map in _message(content, 1):
        for entry in _message(feature_map, 1):
            name = _message(entry, 1)[0].decode()
            for kind, values in _fields(_message(entry, 2)[0]):
                if kind == 1 and isinstance(values, bytes):
                    features[name] = _message(values, 1)[0]
                elif kind == 3 and isinstance(values, bytes):
                    features[name] = _integers(values)
    return features


def _integers(buffer: bytes) -> list[int]:
    """An Int64List, packed or not."""
    numbers: list[int] = []
    for _, value in _fields(buffer):
        if isinstance(value, int):
            numbers.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            numbers.append(number)
    return numbers


class TFRecordImages:
    """uint8 images in one or more TFRecord files, in the order of the files' names and their records; label 0."""

    def __init__(self, paths: list[Path]):
        self.name = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} TFRecord files)"
        self._records = [(path, start, length) for path in paths for start, length in _offsets(path)]
        if not self._records:
            raise ValueError(f"{self.name} holds no records; set config.data.source to a file with images.")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        path, start, length = self._records[index]
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        try:
            features = parse_example(content)
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path}, record {index}, is no tf.train.Example ({error}).") from error
        shape, pixels = features.get("shape"), features.get("data")
        if not isinstance(shape, list) or not isinstance(pixels, bytes):
            raise ValueError(f"{path}: records have features {sorted(features)}; images need 'shape' and 'data'.")
        if len(shape) != 3 or int(np.prod(shape)) != len(pixels):
            raise ValueError(f"{path}, record {index}: shape {shape} does not fit {len(pixels)} bytes of uint8 pixels.")
        image = np.frombuffer(pixels, np.uint8).reshape(shape)
        return {"image": np.moveaxis(image, 0, -1), "label": 0}


def open_tfrecords(path: Path) -> TFRecordImages:
    """A TFRecord file, or all in a folder. Of files that hold one set at several sizes (`...-r05`, `-r10`: 2^5, 2^10
    pixels, as StyleGAN writes them) only the largest size is read."""
    paths = (
        [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file() and is_tfrecord(file))
    )
    levels = [re.search(r"-r(\d\d)\.tfrecords?$", file.name) for file in paths]
    if all(levels):
        largest = max(level[1] for level in levels if level)
        paths = [file for file, level in zip(paths, levels, strict=True) if level and level[1] == largest]
    return TFRecordImages(paths)
