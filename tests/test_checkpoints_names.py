import json

import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
from checkpoints.names import flax_names, flax_names_dotted, network_names, torch_names

PDS = golden_folder("pds")

# Construction order of the published PyTorch networks, written out by hand: one letter a class, numbered by class.
CLASSES = {
    "W": "GaussianFourierProjection",
    "D": "Dense",
    "C": "Conv",
    "R": "ResnetBlockBigGANpp",
    "A": "AttnBlockpp",
    "d": "Downsample",
    "u": "Upsample",
    "+": "Combine",
    "G": "GroupNorm",
}
ORDERS = {
    "ve_cifar10_ncsnpp_continuous_tiny": ("WDDC RRd RA RAR RRA R RR GC", CLASSES),
    "vp_ddpmpp_continuous_tiny": ("DDC RR RA RAR RRA R RR GC", CLASSES),
    "ve_bedroom_tiny": ("WDDC RRR+ RRR+ RARA RAR RRRAGCR RRRGCR RRRGC", CLASSES),
    "ve_ncsnpp_catcombine_ddpmblock_tiny": (
        "WDDC Rd+ RA RAR RRAGCu RRGC",
        CLASSES | {"R": "ResnetBlockDDPMpp"},
    ),
    "vp_ddpm_tiny": ("DDC Rd RA RAR RRAu RR GC", CLASSES | {"R": "ResnetBlockDDPM", "A": "AttnBlock"}),
}


def module_order(name):
    letters, classes = ORDERS[name]
    order, seen = [], {}
    for letter in letters.replace(" ", ""):
        order.append(f"{classes[letter]}_{seen.get(letter, 0)}")
        seen[letter] = seen.get(letter, 0) + 1
    return order


def read(name):
    return checkpoints.read(PDS / f"{name}.pth")


@pytest.mark.parametrize(
    "name, flax",
    [
        ("ve_cifar10_ncsnpp_continuous_tiny", "flax_ve_cifar10_continuous_tiny"),
        ("vp_ddpmpp_continuous_tiny", "flax_vp_ddpmpp_continuous_tiny"),
    ],
)
def test_a_torch_file_gets_exactly_the_names_and_shapes_of_the_flax_file_of_the_same_config(name, flax):
    tree = json.loads((PDS / f"{flax}.json").read_text())["checkpoint"]["param_tree"]
    for tensors in (read(name).raw, read(name).ema):
        flat = flax_names(tensors, module_order(name))
        assert sorted([path, list(array.shape)] for path, array in flat.items()) == sorted(tree)


@pytest.mark.parametrize("name", ORDERS)
def test_torch_to_flax_and_back_changes_nothing(name):
    raw = read(name).raw
    back = torch_names(flax_names(raw, module_order(name)), module_order(name))
    kept = {key.removeprefix("module."): array for key, array in raw.items() if key != "module.sigmas"}
    assert set(back) == set(kept)
    for key, array in kept.items():
        np.testing.assert_array_equal(back[key], array, strict=True)


@pytest.mark.parametrize("name", ["flax_ve_cifar10_continuous_tiny", "flax_vp_ddpmpp_continuous_tiny"])
def test_flax_to_torch_and_back_changes_nothing(name):
    params = checkpoints.read(PDS / f"{name}.msgpack").ema
    order = module_order("vp_ddpmpp_continuous_tiny" if "_vp_" in name else "ve_cifar10_ncsnpp_continuous_tiny")
    back = flax_names(torch_names(params, order), order)
    assert set(back) == set(params)
    for path, array in params.items():
        np.testing.assert_array_equal(back[path], array, strict=True)


def test_each_layout_is_turned_as_it_should_be():
    raw = read("ve_ncsnpp_catcombine_ddpmblock_tiny").raw
    flat = flax_names(raw, module_order("ve_ncsnpp_catcombine_ddpmblock_tiny"))

    def source(name):
        return raw[f"module.all_modules.{name}"]

    o, i, h, w = 3, 2, 0, 1
    assert flat["Conv_0/kernel"][h, w, i, o] == source("3.weight")[o, i, h, w]
    assert (
        flat["Dense_1/kernel"][5, 7] == source("2.weight")[7, 5] != source("2.weight")[5, 7]
    )  # square: shapes are blind
    assert flat["AttnBlockpp_0/NIN_1/W"][5, 7] == source("8.NIN_1.W")[5, 7] != source("8.NIN_1.W")[7, 5]
    np.testing.assert_array_equal(flat["ResnetBlockDDPMpp_0/GroupNorm_1/scale"], source("4.GroupNorm_1.weight"))
    np.testing.assert_array_equal(flat["ResnetBlockDDPMpp_0/GroupNorm_1/bias"], source("4.GroupNorm_1.bias"))
    np.testing.assert_array_equal(flat["GaussianFourierProjection_0/W"], source("0.W"))
    # Module 5 is a Downsample and 17 an Upsample without parameters: they take a number all the same.
    assert flat["Combine_0/Conv_0/kernel"].shape == (1, 1, 3, 8)
    np.testing.assert_array_equal(flat["Conv_2/bias"], source("21.bias"))


def test_the_fir_convolution_keeps_the_name_weight_as_in_the_published_flax_files():
    name = "ve_cifar10_ncsnpp_continuous_tiny"
    flat, raw = flax_names(read(name).raw, module_order(name)), read(name).raw
    stored = raw["module.all_modules.6.Conv2d_0.weight"]
    np.testing.assert_array_equal(flat["Downsample_0/Conv2d_0/weight"][1, 2], stored[:, :, 1, 2].T)


def test_the_parallel_prefix_makes_no_difference():
    name = "vp_ddpm_tiny"
    raw, order = read(name).raw, module_order(name)
    bare = flax_names({key.removeprefix("module."): array for key, array in raw.items()}, order)
    with_prefix = flax_names(raw, order)
    assert list(bare) == list(with_prefix) and all(bare[path] is not None for path in bare)
    np.testing.assert_array_equal(bare["Conv_0/kernel"], with_prefix["Conv_0/kernel"])


@pytest.mark.parametrize("ema", [True, False])
def test_files_of_every_kind_come_under_the_names_of_the_network(ema):
    torch, flax = read("vp_ddpmpp_continuous_tiny"), checkpoints.read(PDS / "flax_vp_ddpmpp_continuous_tiny.msgpack")
    order, kind = module_order("vp_ddpmpp_continuous_tiny"), "ema" if ema else "raw"
    found = network_names(torch, flax.raw, order, ema)
    assert set(found) == set(flax.raw)
    stored = getattr(torch, kind)["module.all_modules.2.bias"]
    np.testing.assert_array_equal(found["Conv_0/bias"], stored)
    bare = torch._replace(format="torch_state_dict", raw=torch.weights(ema), ema=None)
    np.testing.assert_array_equal(network_names(bare, flax.raw, order)["Conv_0/bias"], stored)
    assert network_names(flax, flax.raw, ema=ema) is getattr(flax, kind)
    wrapped = {"model.map_layer0.bias": np.ones(2), "u": np.ones(3)}  # u: a constant of the network scaling
    dotted = torch._replace(format="edm_pickle", raw=wrapped, ema=None)
    assert list(network_names(dotted, ["map_layer0/bias"], ema=ema)) == ["map_layer0/bias"]


def test_another_network_is_refused_with_the_tensor():
    raw = read("vp_ddpm_tiny").raw
    with pytest.raises(
        ValueError, match=r"'module.all_modules.3.GroupNorm_0.weight' belongs to module 3, .* has 3 modules"
    ):
        flax_names(raw, module_order("vp_ddpm_tiny")[:3])
    with pytest.raises(ValueError, match="'input_blocks.0.0.weight' is not named all_modules"):
        flax_names({"input_blocks.0.0.weight": np.ones(1)}, ["Conv_0"])
    with pytest.raises(ValueError, match="'Dense_0/bias' belongs to no module of the network"):
        torch_names({"Dense_0/bias": np.ones(1)}, ["Conv_0"])


def test_dotted_names_find_their_parameter_wherever_the_network_puts_its_modules():
    tensors = {"module.input_blocks.1.0.in_layers.2.weight": np.arange(24.0).reshape(2, 3, 2, 2)}
    for path in (
        "input_blocks_1_0/in_layers_2/kernel",
        "input_blocks.1.0/in_layers.2/kernel",
        "input_blocks/1/0/in_layers/2/kernel",
        "input_blocks.1.0.in_layers.2/kernel",
    ):
        flat = flax_names_dotted(tensors, [path, "out/kernel"])
        assert list(flat) == [path] and flat[path].shape == (2, 2, 3, 2)
        assert flat[path][1, 0, 2, 1] == tensors["module.input_blocks.1.0.in_layers.2.weight"][1, 2, 1, 0]


def test_each_dotted_leaf_is_turned_as_it_should_be():
    random = np.random.default_rng(0)
    tensors = {
        "attn.qkv.weight": random.standard_normal((6, 2, 1)),
        "emb.weight": random.standard_normal((4, 3)),
        "lin.weight": random.standard_normal((4, 3)),
        "norm.weight": random.standard_normal(5),
        "layer_norm.weight": random.standard_normal((2, 3, 4)),
        "layer_norm.bias": random.standard_normal((2, 3, 4)),
        "lin.bias": random.standard_normal(4),
        "pool.positional_embedding": random.standard_normal((4, 17)),
        "enc.down.resample_filter": np.ones((1, 1, 2, 2)),
    }
    expected = ["attn/qkv/kernel", "emb/embedding", "lin/kernel", "norm/scale", "layer_norm/scale", "layer_norm/bias"]
    flat = flax_names_dotted(tensors, [*expected, "lin/bias", "pool/positional_embedding"])
    assert set(flat) == {*expected, "lin/bias", "pool/positional_embedding"}
    np.testing.assert_array_equal(flat["attn/qkv/kernel"], tensors["attn.qkv.weight"][:, :, 0].T)
    np.testing.assert_array_equal(flat["emb/embedding"], tensors["emb.weight"])
    np.testing.assert_array_equal(flat["lin/kernel"], tensors["lin.weight"].T)
    np.testing.assert_array_equal(flat["norm/scale"], tensors["norm.weight"])
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
        np.testing.assert_array_equal(flat[f"layer_norm/{leaf}"][:, :, 1], tensors[f"layer_norm.{name}"][1])
    np.testing.assert_array_equal(flat["lin/bias"], tensors["lin.bias"])
    np.testing.assert_array_equal(flat["pool/positional_embedding"], tensors["pool.positional_embedding"])


def test_dotted_names_that_match_nothing_are_kept_for_the_report():
    assert list(flax_names_dotted({"a.b.weight": np.ones((2, 2)), "u": np.ones(3)}, [], buffers=("u",))) == [
        "a/b/kernel"
    ]


def test_names_that_differ_only_in_separators_are_refused():
    with pytest.raises(ValueError, match="'a_b/bias' and 'a/b/bias' differ only in separators"):
        flax_names_dotted({}, ["a_b/bias", "a/b/bias"])
    with pytest.raises(ValueError, match="tensor 'a_b.bias' and another one"):
        flax_names_dotted({"a.b.bias": np.ones(1), "a_b.bias": np.ones(1)}, ["a_b/bias"])
