"""TFRecords: framing by its checksum, messages made by protobuf itself, and damaged files."""

import struct

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

import data
from data import tfrecords


def example(**features):
    """A serialised tf.train.Example, by the protobuf library."""
    message = tf_feature_pb2.Features()
    for name, value in features.items():
        if isinstance(value, bytes):
            message.feature[name].bytes_list.value.append(value)
        elif isinstance(value[0], float):
            message.feature[name].float_list.value.extend(value)
        else:
            message.feature[name].int64_list.value.extend(value)
    return tf_example_pb2.Example(features=message).SerializeToString()


def write(path, contents):
    with path.open("wb") as file:
        for content in contents:
            length = struct.pack("<Q", len(content))
            file.write(length + struct.pack("<I", tfrecords.masked_crc32c(length)))
            file.write(content + struct.pack("<I", 0))
    return path


def image_example(image):
    chw = np.moveaxis(image, -1, 0)
    return example(shape=list(chw.shape), data=chw.tobytes(), mean=[0.5, 1.5])


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 20, 3), np.uint8)  # 240 bytes: a two-byte varint


def test_the_checksum_is_the_published_check_value_of_crc32c():
    crc = 0xE3069283  # of b"123456789", as every catalogue of CRCs lists it
    assert tfrecords.masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_channel_first_pixels_come_back_as_images(tmp_path, images):
    source = data.create_source(write(tmp_path / "set.bin", map(image_example, images)))
    assert len(source) == 3
    for index in range(3):
        np.testing.assert_array_equal(source[index]["image"], images[index])
        assert source[index]["label"] == 0


def test_features_are_what_protobuf_wrote_whatever_their_order_and_packing():
    numbers = [0, 127, 128, 300, 2**40]
    assert tfrecords.parse_example(example(data=b"\x00\xff" * 100, shape=numbers, x=[1.5])) == {
        "data": b"\x00\xff" * 100,
        "shape": numbers,
    }
    unpacked = b"".join(b"\x08" + bytes([n]) for n in (3, 4, 5))  # field 1, one varint a value
    assert tfrecords._integers(unpacked) == [3, 4, 5]


def test_a_folder_reads_all_shards_but_of_several_sizes_only_the_largest(tmp_path, images):
    for name in ("a.tfrecords", "b.tfrecords"):
        write(tmp_path / name, map(image_example, images[: 1 + (name[0] == "b")]))
    assert len(data.create_source(tmp_path)) == 3
    sizes = tmp_path / "sizes"
    sizes.mkdir()
    for level in (2, 3, 10):
        write(sizes / f"set-r{level:02d}.tfrecords", [image_example(np.zeros((2**level, 2, 3), np.uint8))])
    source = data.create_source(sizes)
    assert len(source) == 1 and source[0]["image"].shape[0] == 1024


@pytest.mark.parametrize("keep", [-1, -30, 5])
def test_a_file_that_is_cut_off_says_after_which_record(tmp_path, images, keep):
    path = write(tmp_path / "set.tfrecords", map(image_example, images))
    whole = path.read_bytes()
    start_of_last = 2 * (len(whole) // 3)
    path.write_bytes(whole[:keep] if keep < 0 else whole[: start_of_last + keep])
    with pytest.raises(ValueError, match="set.tfrecords is damaged or cut off after record 2"):
        tfrecords.open_tfrecords(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            example(image=b"x", height=[3]),
            r"records have features \['height', 'image'\]; images need 'shape' and 'data'",
        ),
        (example(shape=[3, 2, 2], data=b"12345"), r"record 0: shape \[3, 2, 2\] does not fit 5 bytes"),
        (example(shape=[4], data=b"1234"), r"shape \[4\] does not fit"),
        (b"\x0a\xff", "record 0, is no tf.train.Example"),
    ],
    ids=["no pixels", "bytes too few", "no image shape", "no example"],  # equal in every worker, unlike the bytes
)
def test_records_that_are_no_images_are_named(tmp_path, content, message):
    source = data.create_source(write(tmp_path / "set.tfrecords", [content]))
    with pytest.raises(ValueError, match=message):
        source[0]
