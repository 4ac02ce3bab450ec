"""Sources: every container gives the same pixels, labels and order; bad input is named."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image as Pillow

import data
from data import sources


def png(pixels):
    stream = io.BytesIO()
    Pillow.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def files():
    """Five small images in two class folders."""
    generator = np.random.default_rng(0)
    names = ["cat/0.png", "cat/1.png", "ant/b.png", "ant/a.png", "cat/2.png"]
    return {name: generator.integers(0, 256, (4, 5, 3), np.uint8) for name in names}


def write_folder(folder, files):
    for name, pixels in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(pixels))
    return folder


def write_zip(path, files, compression=zipfile.ZIP_STORED, extra=None):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, pixels in files.items():
            archive.writestr(name, png(pixels))
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("kind", ["folder", "stored zip", "deflated zip"])
def test_folders_and_zips_list_images_by_path_and_number_class_folders_in_sorted_order(tmp_path, files, kind):
    if kind == "folder":
        source = data.create_source(write_folder(tmp_path / "set", files))
    else:
        compression = zipfile.ZIP_DEFLATED if kind == "deflated zip" else zipfile.ZIP_STORED
        source = data.create_source(write_zip(tmp_path / "set.zip", files, compression))
    assert len(source) == 5
    for index, name in enumerate(sorted(files)):
        example = source[index]
        np.testing.assert_array_equal(example["image"], files[name])
        assert example["label"] == (0 if name.startswith("ant") else 1)


def test_images_at_the_top_have_no_classes_and_other_files_are_left_out(tmp_path, files):
    folder = write_folder(tmp_path / "set", files | {"top.png": files["cat/0.png"]})
    (folder / "README.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    source = data.create_source(folder)
    assert len(source) == 6 and {source[i]["label"] for i in range(6)} == {0}


def test_dataset_json_of_an_edm_archive_gives_the_labels(tmp_path, files):
    labels = {name: 7 * rank for rank, name in enumerate(files)}
    content = json.dumps({"labels": [[name, label] for name, label in labels.items()]})
    source = data.create_source(write_zip(tmp_path / "edm.zip", files, extra={"dataset.json": content}))
    assert [source[i]["label"] for i in range(5)] == [labels[name] for name in sorted(files)]
    unlabelled = write_zip(tmp_path / "none.zip", files, extra={"dataset.json": '{"labels": null}'})
    assert data.create_source(unlabelled)[4]["label"] == 0


@pytest.mark.parametrize(
    "labels, message",
    [([["cat/0.png", 1]], r"dataset.json has no label for 4 images, first ant/a.png"), (None, "whole numbers")],
)
def test_dataset_json_that_does_not_fit_is_named(tmp_path, files, labels, message):
    labels = labels or [[name, [0.0, 1.0]] for name in files]
    path = write_zip(tmp_path / "edm.zip", files, extra={"dataset.json": json.dumps({"labels": labels})})
    with pytest.raises(ValueError, match=message):
        data.create_source(path)


@pytest.mark.parametrize("image_key, label_key", [("arr_0", "arr_1"), ("samples", "label"), ("images", "labels")])
def test_npz_arrays_are_read_under_each_accepted_name(tmp_path, image_key, label_key):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "set.npz", **{image_key: images, label_key: np.array([2, 0, 1])})
    source = data.create_source(tmp_path / "set.npz")
    np.testing.assert_array_equal(source[1]["image"], images[1])
    assert [source[i]["label"] for i in range(3)] == [2, 0, 1]


def test_npz_without_labels_is_class_zero(tmp_path):
    np.savez(tmp_path / "set.npz", np.zeros((2, 4, 4, 1), np.uint8))
    assert data.create_source(tmp_path / "set.npz")[1]["label"] == 0


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"pixels": np.zeros((1, 2, 2, 3), np.uint8)}, r"arrays \['pixels'\], none called arr_0"),
        ({"arr_0": np.zeros((1, 2, 2, 3))}, r"arr_0 is float64 \(1, 2, 2, 3\); images must be uint8"),
        ({"arr_0": np.zeros((2, 2, 3), np.uint8)}, r"must be uint8 \[n, h, w, c\]"),
        ({"arr_0": np.zeros((2, 2, 2, 3), np.uint8), "arr_1": np.zeros(3, int)}, "3 labels for 2 images"),
    ],
)
def test_npz_arrays_that_are_no_images_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.create_source(tmp_path / "set.npz")


def test_grey_keeps_one_channel_and_alpha_is_dropped(tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Pillow.fromarray(grey).save(tmp_path / "a.png")
    Pillow.fromarray(np.full((4, 4, 4), 9, np.uint8)).save(tmp_path / "b.png")
    Pillow.fromarray((grey.astype(np.uint16) << 8) + 200).save(tmp_path / "c.png")
    source = data.create_source(tmp_path)
    np.testing.assert_array_equal(source[0]["image"], grey[..., None])
    assert source[1]["image"].shape == (4, 4, 3)
    np.testing.assert_array_equal(source[2]["image"], grey[..., None])


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    Pillow.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(data.create_source(tmp_path)[0]["image"], np.rot90(pixels, -1))


def test_a_corrupt_or_mislabelled_image_is_named(tmp_path):
    stream = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    (tmp_path / "text.png").write_text("hello")
    source = data.create_source(tmp_path)
    with pytest.raises(ValueError, match=r"cut.jpg cannot be read as an image .*truncated"):
        source[0]
    with pytest.raises(ValueError, match=r"text.png cannot be read as an image"):
        source[1]


def test_a_damaged_archive_member_is_named(tmp_path, files):
    path = write_zip(tmp_path / "set.zip", files)
    content = bytearray(path.read_bytes())
    start = content.index(b"cat/0.png") + len("cat/0.png")
    content[start + 30] ^= 0xFF
    path.write_bytes(bytes(content))
    source = data.create_source(path)
    with pytest.raises(ValueError, match=r"set.zip/cat/0.png is damaged"):
        [source[i] for i in range(5)]


def test_what_is_not_a_data_set_is_refused_with_the_setting_to_change(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No data at .*nowhere: set config.data.source"):
        data.create_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images .*it is empty"):
        data.create_source(tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    with pytest.raises(ValueError, match=r"1 other files, such as todo.txt"):
        data.create_source(tmp_path / "notes")
    with pytest.raises(ValueError, match=r"todo.txt is no folder, zip, npz or TFRecord file"):
        data.create_source(tmp_path / "notes" / "todo.txt")


def test_what_is_held_out_of_training_is_every_kth_example_from_the_first():
    class Numbers:
        name = "numbers"

        def __len__(self):
            return 7

        def __getitem__(self, index):
            return {"image": np.zeros((1, 1, 3), np.uint8), "label": index}

    kept = sources.Without(Numbers(), 3)
    assert [kept[i]["label"] for i in range(len(kept))] == [1, 2, 4, 5]
    with pytest.raises(ValueError, match="config.data.holdout=1"):
        sources.Without(Numbers(), 1)
