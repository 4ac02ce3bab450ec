import math
import os
import pickle
import zipfile
from pathlib import Path

import checkpoint_writers as writers
import numpy as np
import pytest
from checkpoint_writers import Build, Call, Name, tensor

import checkpoints
from checkpoints.pickle_data import RefusedPickle
from checkpoints.torch_pickle import load, to_numpy

GOLDENS = Path(__file__).parent / "goldens"
ARRAY = np.arange(24, dtype=np.float32).reshape(4, 6)


def write(container, path, value, storages):
    """`value` in one of the two containers."""
    if container == "zip":
        writers.write_zip(path, value, storages)
    else:
        path.write_bytes(writers.legacy_stream(value, storages))
    return path


both_containers = pytest.mark.parametrize("container", ["zip", "legacy"])


@both_containers
def test_the_samples_written_by_torch_are_read_bit_for_bit(container):
    expected = np.load(GOLDENS / "checkpoints" / "pt_sample_expected.npz")
    tensors = checkpoints.read(GOLDENS / "checkpoints" / f"pt_sample_{container}.pt").raw
    assert set(tensors) == set(expected.files)
    assert tensors["g.bf16"].dtype.name == "bfloat16"
    for name in expected.files:
        dtype = np.float32 if name == "g.bf16" else tensors[name].dtype
        assert dtype == expected[name].dtype and tensors[name].shape == expected[name].shape
        np.testing.assert_array_equal(tensors[name].astype(dtype), expected[name], strict=True)


@both_containers
def test_views_keep_their_offset_and_strides_and_share_the_mapped_file(tmp_path, container):
    value = {
        "transposed": tensor(ARRAY, "0", 0, (6, 4), (1, 6)),
        "row": tensor(ARRAY, "0", 6, (6,), (1,)),
        "diagonal": tensor(ARRAY, "0", 0, (4,), (7,)),
        "scalar": tensor(ARRAY, "0", 23, (), ()),
        "empty": tensor(ARRAY, "0", 0, (0, 3), (3, 1)),
    }
    tensors = checkpoints.read(write(container, tmp_path / "w.pt", value, {"0": ARRAY})).raw
    expected = {"transposed": ARRAY.T, "row": ARRAY[1], "diagonal": ARRAY.diagonal(), "scalar": ARRAY[3, 5]}
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert not tensors[name].flags.writeable and not tensors[name].flags.owndata
    assert tensors["empty"].shape == (0, 3)


@both_containers
def test_a_function_of_the_system_is_refused_by_name_and_not_called(tmp_path, container):
    marker = tmp_path / "executed"
    hostile = Call(Name(os.system.__module__, "system"), (f"echo > {marker}",))
    pickle.loads(writers.pickled(hostile))
    assert marker.exists(), "the payload must be a working one"
    marker.unlink()
    path = write(container, tmp_path / "w.pt", {"a": tensor(ARRAY, "0"), "b": hostile}, {"0": ARRAY})
    with pytest.raises(RefusedPickle, match=rf"w.pt.*'{os.system.__module__}\.system'.*Nothing was executed"):
        checkpoints.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "torch.load", "torch.FloatStorage.__init__", "numpy.load", "os.path"]
)
def test_every_name_off_the_list_is_refused(tmp_path, name):
    path = tmp_path / "w.pt"
    writers.write_zip(path, {"a": Name(*name.rsplit(".", 1))}, {})
    with pytest.raises(RefusedPickle, match=name):
        checkpoints.read(path)


def test_what_the_pickle_built_cannot_be_called(tmp_path):
    path = tmp_path / "w.pt"
    writers.write_zip(path, {"a": Call("eval", ("1",))}, {})
    with pytest.raises(RefusedPickle, match="calls something that it built"):
        checkpoints.read(path)


def test_instructions_of_old_pickles_that_call_classes_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02(ios\nsystem\n.")
    with pytest.raises(RefusedPickle, match="instruction INST"):
        checkpoints.read(path)


def test_setting_attributes_changes_none_of_our_objects(tmp_path):
    path, rebuild = tmp_path / "w.pt", Name("torch._utils", "_rebuild_tensor_v2")
    writers.write_zip(
        path, {"a": tensor(ARRAY, "0"), "b": Build(rebuild, (None, {"__defaults__": (1,)}))}, {"0": ARRAY}
    )
    tree = load(path)
    assert tree["b"].meaning.__defaults__ is None
    np.testing.assert_array_equal(to_numpy(tree["a"], "a", "w.pt"), ARRAY)


def test_a_claimed_length_or_memo_index_allocates_nothing(tmp_path):
    for code in (b"B\xff\xff\xff\xff", b"X\xff\xff\xff\x7f", b"N\x8e" + b"\xff" * 7 + b"\x7f"):
        path = tmp_path / "w.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + code)
        with pytest.raises(ValueError, match="damaged or truncated"):
            checkpoints.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02Nr\xff\xff\xff\xff.")
    assert load(path) is None


def test_numpy_scalars_are_plain_numbers_and_other_dtypes_are_refused(tmp_path):
    def scalar(kind, data):
        dtype = Build(Call(Name("numpy", "dtype"), (kind, False, True)), (3, "<", None, None, None, -1, -1, 0))
        return Call(Name("numpy.core.multiarray", "scalar"), (dtype, data))

    path = tmp_path / "w.pt"
    writers.write_zip(
        path, {"model": {"a": tensor(ARRAY, "0")}, "lr": scalar("f8", np.float64(0.25).tobytes())}, {"0": ARRAY}
    )
    assert load(path)["lr"] == 0.25
    writers.write_zip(path, {"lr": scalar("O8", b"\0" * 8)}, {})  # NumPy would follow these bytes as a pointer
    with pytest.raises(ValueError, match="no plain little-endian number"):
        load(path)


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (4, 7), (7, 1)),  # more elements than there are
        (20, (5,), (1,)),  # leaves the storage at the end
        (0, (4, 4), (6, 2)),  # the last one is 3 * 6 + 3 * 2 = 24
        (0, (1 << 20, 1 << 20), (0, 0)),  # a terabyte out of one number
        (0, (5, 6), (0, 1)),  # repeats elements
    ],
)
@both_containers
def test_a_view_that_leaves_or_repeats_its_storage_is_refused_by_name(tmp_path, container, offset, size, stride):
    value = {"fine": tensor(ARRAY, "0"), "bad.weight": tensor(ARRAY, "0", offset, size, stride)}
    with pytest.raises(ValueError, match=r"w.pt: tensor 'bad.weight' does not fit its storage of 24 elements"):
        checkpoints.read(write(container, tmp_path / "w.pt", value, {"0": ARRAY}))


def test_the_largest_view_that_still_fits_is_read(tmp_path):
    writers.write_zip(tmp_path / "w.pt", {"a": tensor(ARRAY, "0", 5, (4, 2), (6, 0))}, {"0": ARRAY})
    np.testing.assert_array_equal(checkpoints.read(tmp_path / "w.pt").raw["a"], ARRAY[:, [5, 5]])


@pytest.mark.parametrize(
    "offset, size, stride", [(-1, (2,), (1,)), (0, (-2,), (1,)), (0, (2,), (-1,)), (0, (2,), (1, 1))]
)
def test_negative_numbers_in_a_view_are_damage(tmp_path, offset, size, stride):
    writers.write_zip(tmp_path / "w.pt", {"a": tensor(ARRAY, "0", offset, size, stride)}, {"0": ARRAY})
    with pytest.raises(ValueError, match="damaged or truncated"):
        checkpoints.read(tmp_path / "w.pt")


@both_containers
def test_a_storage_shorter_than_it_claims_names_the_tensor(tmp_path, container):
    value = {"fine": tensor(ARRAY, "0"), "long.weight": tensor(ARRAY, "1", count=24)}
    path = write(container, tmp_path / "w.pt", value, {"0": ARRAY, "1": ARRAY[:3]})
    with pytest.raises(
        ValueError, match="w.pt is truncated: tensor 'long.weight' lies in storage '1' of 96 bytes, .* 72"
    ):
        checkpoints.read(path)


def test_a_storage_missing_from_the_zip_names_the_tensor(tmp_path):
    writers.write_zip(tmp_path / "w.pt", {"a.weight": tensor(ARRAY, "7")}, {"0": ARRAY})
    with pytest.raises(ValueError, match="tensor 'a.weight' lies in storage '7' of 96 bytes, of which 0"):
        checkpoints.read(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["pt_sample_zip.pt", "pt_sample_legacy.pt"])
def test_a_file_cut_anywhere_is_refused_with_its_name(tmp_path, name):
    whole = (GOLDENS / "checkpoints" / name).read_bytes()
    path = tmp_path / name
    for length in [0, 1, 2, 9, 20, *range(40, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=name):
            checkpoints.read(path)


def test_a_legacy_file_cut_in_its_last_tensor_names_that_tensor(tmp_path):
    storages = {"0": ARRAY, "1": ARRAY}
    stream = writers.legacy_stream({"first": tensor(ARRAY, "0"), "last": tensor(ARRAY, "1")}, storages)
    (tmp_path / "w.pt").write_bytes(stream[:-4])
    with pytest.raises(ValueError, match="tensor 'last' .* of 96 bytes, of which 92"):
        checkpoints.read(tmp_path / "w.pt")


def test_a_compressed_zip_is_refused_so_that_it_cannot_be_a_bomb(tmp_path):
    zeros = np.zeros(1 << 20, np.float32)
    writers.write_zip(tmp_path / "w.pt", {"a": tensor(zeros, "0")}, {"0": zeros}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="w.pt: entry .* is compressed"):
        checkpoints.read(tmp_path / "w.pt")


def test_a_zip_directory_that_points_elsewhere_is_damage(tmp_path):
    path = tmp_path / "w.pt"
    writers.write_zip(path, {"a": tensor(ARRAY, "0")}, {"0": ARRAY})
    content = bytearray(path.read_bytes())
    entry = content.find(b"PK\1\2")
    content[entry + 42 : entry + 46] = (3).to_bytes(4, "little")  # the first entry, data.pkl, moved by 3 bytes
    path.write_bytes(content)
    with pytest.raises(ValueError, match="w.pt.*damaged"):
        checkpoints.read(path)


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path):
    with open(tmp_path / "arrays.pth", "wb") as file:
        np.savez(file, a=ARRAY)
    with pytest.raises(ValueError, match="arrays.pth is a zip but no torch checkpoint"):
        checkpoints.read(tmp_path / "arrays.pth")


def test_a_big_endian_file_is_refused(tmp_path):
    writers.write_zip(tmp_path / "w.pt", {"a": tensor(ARRAY, "0")}, {"0": ARRAY})
    content = (tmp_path / "w.pt").read_bytes().replace(b"little", b"big\0\0\0")
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match="big-endian"):
        checkpoints.read(tmp_path / "w.pt")


def test_damaged_bytes_never_raise_anything_but_a_value_error(tmp_path):
    path, random = tmp_path / "w.pt", np.random.default_rng(0)
    for name in ("pt_sample_zip.pt", "pt_sample_legacy.pt"):
        whole = np.frombuffer((GOLDENS / "checkpoints" / name).read_bytes(), np.uint8)
        for _ in range(100):
            damaged = whole.copy()
            damaged[random.integers(0, len(whole), 3)] = random.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                tensors = checkpoints.read(path).raw
            except ValueError:
                continue
            assert sum(math.prod(array.shape) for array in tensors.values()) < 1000
