import json
import mmap
import os
import pickle

import checkpoint_writers as writers
import numpy as np
import pytest
from checkpoint_writers import Build, Call, Memo, Name, edm_module, edm_parameter, edm_tensor

import checkpoints
from checkpoints.pickle_data import RefusedPickle

CONV = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3)
FILTER = np.full((1, 1, 2, 2), 0.25, np.float32)


def network(**leaf_state):
    """EDMPrecond(SongUNet(map_layer0, enc: ModuleDict of one Conv2d)), in the pickle layout of EDM's snapshots."""
    dtype = Build(Call(Name("numpy", "dtype"), ("f8", False, True)), (3, "<", None, None, None, -1, -1, 0))
    skip_scale = Call(Name("numpy.core.multiarray", "scalar"), (dtype, np.float64(0.5).tobytes()))
    leaf = {
        "_parameters": {"weight": edm_parameter(CONV), "bias": None},
        "_buffers": {"resample_filter": edm_tensor(FILTER), "unused": None},
        "_modules": {},
        "skip_scale": skip_scale,
    }
    conv = edm_module("Conv2d", leaf | leaf_state)
    linear = edm_module(
        "Linear", {"_parameters": {"weight": edm_parameter(CONV[0, 0])}, "_buffers": {}, "_modules": {}}
    )
    container = Build(
        Call(Name("torch.nn.modules.container", "ModuleDict"), ()),
        {"_parameters": {}, "_buffers": {}, "_modules": {"8x8_conv": conv}},
    )
    unet = edm_module(
        "SongUNet",
        {
            "_parameters": {},
            "_buffers": {},
            "_modules": {"map_layer0": linear, "enc": container, "map_label": None},
            "_init_kwargs": {"img_resolution": 8, "channel_mult": [1, 2], "encoder_type": "standard"},
        },
    )
    return edm_module(
        "EDMPrecond",
        {
            "_parameters": {},
            "_buffers": {},
            "_modules": {"model": unet},
            "_init_args": (),
            "_init_kwargs": {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"},
            "sigma_data": 0.5,
            "training": False,
            "_is_full_backward_hook": False,
        },
    )


def test_tensors_come_by_dotted_path_and_the_architecture_with_them(tmp_path):
    snapshot = {
        "ema": network(),
        "loss_fn": edm_module("EDMLoss", {"P_mean": -1.2}),
        "dataset_kwargs": {"xflip": False},
    }
    (tmp_path / "net.pkl").write_bytes(writers.pickled(snapshot))
    checkpoint = checkpoints.read(tmp_path / "net.pkl")
    assert checkpoint.format == "edm_pickle"
    expected = {
        "model.map_layer0.weight": CONV[0, 0],
        "model.enc.8x8_conv.weight": CONV,
        "model.enc.8x8_conv.resample_filter": FILTER,
    }
    assert list(checkpoint.raw) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.raw[name], array, strict=True)
        assert isinstance(checkpoint.raw[name].base, mmap.mmap), "the numbers stay in the file until they are used"
    config = json.loads(json.dumps(checkpoint.config))
    assert config["class_name"] == "EDMPrecond" and config["attributes"] == {"sigma_data": 0.5, "training": False}
    assert config["init_kwargs"] == {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"}
    assert config["model"]["class_name"] == "SongUNet" and config["model"]["init_kwargs"]["channel_mult"] == [1, 2]


def test_a_foreign_name_anywhere_in_the_snapshot_is_refused_and_not_called(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "net.pkl"
    hostile = Call(Name(os.system.__module__, "system"), (f"echo > {marker}",))
    pickle.loads(writers.pickled(hostile))
    assert marker.exists(), "the payload must be a working one"
    marker.unlink()
    inside_a_storage = Call(Name("torch.storage", "_load_from_bytes"), (writers.legacy_stream(hostile, {}),))
    for snapshot in (
        {"ema": network(), "loss_fn": hostile},
        {"ema": network(extra=hostile)},
        {"ema": network(), "loss_fn": inside_a_storage},
    ):
        path.write_bytes(writers.pickled(snapshot))
        with pytest.raises(RefusedPickle, match=r"net.pkl.*system'.*Nothing was executed"):
            checkpoints.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "module, name",
    [("training.networks", "EDMPrecond"), ("torch.nn.modules.conv", "Conv2d"), ("builtins", "eval")],
)
def test_a_class_outside_the_persistence_of_edm_is_refused_by_its_name(tmp_path, module, name):
    foreign = Call(Name(module, name), ())
    for snapshot in ({"ema": foreign}, {"ema": network(_modules={"odd": foreign})}, {"augment_pipe": foreign}):
        (tmp_path / "net.pkl").write_bytes(writers.pickled(snapshot))
        with pytest.raises(RefusedPickle, match=rf"net.pkl.*'{module}.{name}'"):
            checkpoints.read(tmp_path / "net.pkl")


def test_a_training_snapshot_with_its_own_dicts_is_read(tmp_path):
    easy = Call(Name("dnnlib.util", "EasyDict"), ())
    (tmp_path / "net.pkl").write_bytes(writers.pickled({"dataset_kwargs": easy, "ema": network()}))
    assert len(checkpoints.read(tmp_path / "net.pkl").raw) == 3


def test_the_source_text_in_the_file_is_not_run(tmp_path):
    marker = tmp_path / "executed"
    source = f"open({str(marker)!r}, 'w').close()"
    leaf = {"_parameters": {"weight": edm_parameter(CONV)}, "_buffers": {}, "_modules": {}}
    (tmp_path / "net.pkl").write_bytes(writers.pickled({"ema": edm_module("Conv2d", leaf, source)}))
    assert list(checkpoints.read(tmp_path / "net.pkl").raw) == ["weight"]
    assert not marker.exists()


def test_a_file_cut_anywhere_is_refused_with_its_name(tmp_path):
    whole, path = writers.pickled({"ema": network()}), tmp_path / "net.pkl"
    for length in [3, 30, *range(100, len(whole), 101), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="net.pkl"):
            checkpoints.read(path)


def test_a_storage_with_too_few_numbers_names_the_tensor(tmp_path):
    short = edm_tensor(CONV)
    stream = short.args[0].args[0]
    torn = short._replace(args=(short.args[0]._replace(args=(stream[:-8],)), *short.args[1:]))
    (tmp_path / "net.pkl").write_bytes(writers.pickled({"ema": network(_buffers={"resample_filter": torn})}))
    with pytest.raises(ValueError, match="net.pkl.*'model.enc.8x8_conv.resample_filter' .* of 216 bytes, of which 208"):
        checkpoints.read(tmp_path / "net.pkl")


def test_a_module_in_two_places_is_refused_because_nesting_it_would_never_end(tmp_path):
    module = edm_module("Leaf", {"_parameters": {"w": edm_parameter(CONV)}})
    for level in range(24):  # 2^24 leaves
        module = edm_module("Pair", {"_modules": {"a": Memo(level, module), "b": Memo(level)}})
    (tmp_path / "net.pkl").write_bytes(writers.pickled({"ema": module}))
    with pytest.raises(ValueError, match="repeats or nests without end"):
        checkpoints.read(tmp_path / "net.pkl")


def test_a_network_that_contains_itself_is_refused(tmp_path):
    # The state dict is memoised and put among its own modules: {"_modules": {"loop": <this module>}}.
    code = (
        b"\x80\x02(X\x03\x00\x00\x00emactorch_utils.persistence\n_reconstruct_persistent_obj\n(}q\x00(X\x05\x00\x00\x00state}"
        b"(X\x08\x00\x00\x00_modules}q\x01uutRq\x02h\x01X\x04\x00\x00\x00looph\x02s0d."
    )
    (tmp_path / "net.pkl").write_bytes(code)
    with pytest.raises(ValueError, match="repeats or nests without end"):
        checkpoints.read(tmp_path / "net.pkl")


def test_other_pickles_are_no_networks(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    with pytest.raises(ValueError, match=r"without an EDM network under the key 'ema' \(it holds \['weights'\]"):
        checkpoints.read(path)
    path.write_bytes(writers.pickled({"ema": edm_module("Empty", {"_parameters": {}, "_modules": {}})}))
    with pytest.raises(ValueError, match="has no tensors"):
        checkpoints.read(path)
    path.write_bytes(writers.pickled({"ema": edm_module("Odd", {"_parameters": {"w": 3}})}))
    with pytest.raises(ValueError, match="w is no tensor"):
        checkpoints.read(path)
    path.write_bytes(writers.pickled({"ema": edm_module("Odd", {"_parameters": 3})}))
    with pytest.raises(ValueError, match="_parameters of a module are no dict"):
        checkpoints.read(path)
