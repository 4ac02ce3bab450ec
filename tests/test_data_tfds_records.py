"""Packing a data set and reading it back through TensorFlow Datasets, without TensorFlow; stops and wrong folders."""

import json
import sys

import numpy as np
import pytest

import data
from data import prepare as packing
from data.prepare import prepare
from data.tfds_records import locate


class ListSource:
    """Grey and colour images of mixed sizes; image i has label i squared."""

    name = "list"

    def __init__(self, count=7):
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (4 + 4 * (i % 2), 8, 1 if i == 3 else 3), np.uint8) for i in range(count)]
        self.reads = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads.append(index)
        return {"image": self.images[index], "label": index**2}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 3 * 4 * 4 * 3)  # three images


def test_a_packed_set_reads_back_the_same_pixels_labels_and_order(tmp_path, small_shards):
    source = ListSource()
    expected, labels = data.pipeline.load_images(source, 4)
    folder = prepare(source, 4, tmp_path / "Packed set")
    packed = data.create_source(folder)
    pixels, packed_labels = data.pipeline.load_images(packed, 4)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(packed_labels, labels)
    assert len(list(folder.glob("*.array_record-*-of-00003"))) == 3 and not list(tmp_path.glob("*.incomplete"))
    assert "tensorflow" not in sys.modules


def test_preparing_again_reads_nothing_and_other_settings_are_refused(tmp_path):
    prepare(ListSource(), 4, tmp_path / "set")
    again = ListSource()
    assert prepare(again, 4, tmp_path / "set") == tmp_path / "set" and again.reads == []
    with pytest.raises(ValueError, match=r"set was made from .*'size': 4.*not from .*'size': 8.*choose another folder"):
        prepare(again, 8, tmp_path / "set")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="other was made from None"):
        prepare(again, 4, tmp_path / "other")


def test_a_run_that_was_stopped_goes_on_with_the_first_missing_shard(tmp_path, small_shards):
    stopped = ListSource()
    stopped.images[4] = np.zeros((4, 4, 2), np.uint8)  # an image that cannot be packed, in the second shard
    with pytest.raises(ValueError, match="2 channels"):
        prepare(stopped, 4, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    with pytest.raises(ValueError, match="set.incomplete was made from .*'size': 4.*not from .*'size': 8"):
        prepare(ListSource(), 8, tmp_path / "set")
    mended = ListSource()
    folder = prepare(mended, 4, tmp_path / "set")
    assert sorted(mended.reads) == [3, 4, 5, 6]
    np.testing.assert_array_equal(
        data.pipeline.load_images(data.create_source(folder), 4)[0], data.pipeline.load_images(mended, 4)[0]
    )


@pytest.fixture
def packed(tmp_path):
    return prepare(ListSource(), 4, tmp_path / "set" / "0.10.0")


def test_the_folder_above_the_version_and_a_name_find_the_set(packed, monkeypatch):
    assert len(data.create_source(packed.parent)) == 7
    monkeypatch.setenv("TFDS_DATA_DIR", str(packed.parent.parent))
    assert len(data.create_source("tfds:set")) == 7


def test_a_name_that_is_not_prepared_is_an_error_at_once_and_no_download(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"tfds:cifar10: nothing is prepared in .*download_and_prepare"):
        locate("tfds:cifar10")


def test_several_prepared_sets_in_one_folder_are_listed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "1.0.0").mkdir(parents=True)
        (tmp_path / name / "1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several prepared data sets, \['a/1.0.0', 'b/1.0.0'\]"):
        data.create_source(tmp_path)


def test_the_newest_version_is_read(packed):
    older = packed.parent / "0.9.0"
    older.mkdir()
    (older / "dataset_info.json").write_text("{}")
    assert "0.10.0" in data.create_source(packed.parent).name


def test_other_formats_and_splits_are_refused(packed):
    with pytest.raises(ValueError, match=r"has splits \['train'\], not 'test'; set config.data.split"):
        data.create_source(packed, "test")
    info = json.loads((packed / "dataset_info.json").read_text())
    (packed / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="prepared as tfrecord, which only TensorFlow reads"):
        data.create_source(packed)


def test_a_set_without_images_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"audio": tfds.features.Scalar(dtype=np.int64)})
    template = tfds.core.ShardedFileTemplate(
        data_dir=tmp_path, dataset_name="set", split="train", filetype_suffix="array_record"
    )
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "set-train.array_record-00000-of-00001"), "group_size:1")
    writer.write(features.serialize_example({"audio": 1}))
    writer.close()
    split = tfds.core.SplitInfo(name="train", shard_lengths=[1], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=tmp_path,
        features=features,
        split_infos=[split],
        version="1.0.0",
        filename_template=template,
        check_data=False,
    )
    with pytest.raises(ValueError, match=r"has features \['audio'\]; an 'image' is needed"):
        data.create_source(tmp_path)


def test_where_array_record_does_not_exist_the_error_says_so(packed, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def without_array_record(folder):
        raise ImportError("No module named 'array_record'")

    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    monkeypatch.setattr(tfds, "builder_from_directory", without_array_record)
    with pytest.raises(ImportError, match="it exists for Linux and macOS"):
        data.create_source(packed)
    with pytest.raises(ImportError, match="--mode=prepare writes array_record files"):
        prepare(ListSource(), 4, tmp_path / "new")


def test_a_split_of_something_without_splits_is_refused(tmp_path):
    np.savez(tmp_path / "set.npz", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"config.data.split='test': .*set.npz has no splits"):
        data.create_source(tmp_path / "set.npz", "test")
