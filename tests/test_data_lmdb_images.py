"""LMDB databases of encoded images, written by the package that owns the format."""

import io
import sys

import numpy as np
import pytest
from PIL import Image as Pillow

import data

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)


def encoded(pixels, kind):
    stream = io.BytesIO()
    Pillow.fromarray(pixels).save(stream, kind, lossless=True)
    return stream.getvalue()


def write(path, entries, subdir=True):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 20) as environment, environment.begin(write=True) as writer:
        for key, value in entries.items():
            writer.put(key, value)


@pytest.mark.parametrize("subdir", [True, False])
def test_images_come_in_the_order_of_their_keys_and_other_entries_are_left_out(tmp_path, subdir):
    path = tmp_path / ("bedroom_train_lmdb" if subdir else "bedroom.lmdb")
    images = {b"c": encoded(PIXELS[2], "WEBP"), b"a": encoded(PIXELS[0], "PNG"), b"b": encoded(PIXELS[1], "WEBP")}
    write(path, images | {b"length": b"3", b"zspace": b"256"}, subdir)
    source = data.create_source(path)
    assert len(source) == 3 and source.name == str(path)
    for index, pixels in enumerate(PIXELS):
        np.testing.assert_array_equal(source[index]["image"], pixels)
        assert source[index]["label"] == 0


def test_a_damaged_image_is_named_by_its_key(tmp_path):
    write(tmp_path / "set", {b"room-7": encoded(PIXELS[0], "PNG")[:60]})
    with pytest.raises(ValueError, match="room-7 cannot be read as an image"):
        data.create_source(tmp_path / "set")[0]


def test_a_database_without_images_and_a_file_that_is_none_are_refused(tmp_path):
    write(tmp_path / "empty", {b"length": b"0"})
    with pytest.raises(ValueError, match="empty holds no encoded images"):
        data.create_source(tmp_path / "empty")
    (tmp_path / "broken.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(ValueError, match="broken.mdb cannot be opened as an LMDB"):
        data.create_source(tmp_path / "broken.mdb")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "data.mdb").touch()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"needs the package lmdb.*pip install '.\[lmdb\]'"):
        data.create_source(tmp_path)
