import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
from checkpoints.base import flatten, unflatten
from checkpoints.fitting import compare, fit, shapes

PDS = golden_folder("pds")
EXPECTED = {"Conv_0/kernel": (3, 3, 2, 4), "Conv_0/bias": (4,), "GroupNorm_0/scale": (4,)}


def tensors(**changes):
    return {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in EXPECTED.items()
    } | changes


def test_matching_tensors_become_the_nested_parameters():
    params = fit(tensors(), EXPECTED, "w.pth")
    assert shapes(params) == EXPECTED and set(params) == {"Conv_0", "GroupNorm_0"}
    np.testing.assert_array_equal(params["Conv_0"]["kernel"], tensors()["Conv_0/kernel"], strict=True)


def test_old_group_norms_lose_their_leading_axes_and_the_log_says_so(caplog):
    flat = tensors(**{"GroupNorm_0/scale": np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)})
    with caplog.at_level(logging.INFO, logger="absl"):
        params = fit(flat, EXPECTED, "checkpoint_26")
    np.testing.assert_array_equal(params["GroupNorm_0"]["scale"], np.arange(4))
    assert "checkpoint_26: leading axes of length 1 repaired in 1 tensors, GroupNorm_0/scale" in caplog.text
    assert compare(flat, EXPECTED).reshaped == ("GroupNorm_0/scale",) and compare(flat, EXPECTED).fits()


def test_leading_axes_are_added_where_the_network_has_them():
    params = fit({"norm/alpha": np.arange(3.0)}, {"norm/alpha": (1, 1, 1, 3)}, "w")
    assert params["norm"]["alpha"].tolist() == [[[[0, 1, 2]]]]


@pytest.mark.parametrize("shape", [(4, 1), (2, 2), (5,), (1, 5), (4, 3, 3, 2)])
def test_no_other_shape_is_repaired(shape):
    name = "Conv_0/kernel" if len(shape) == 4 else "Conv_0/bias"
    with pytest.raises(ValueError, match="1 of another shape"):
        fit(tensors(**{name: np.ones(shape)}), EXPECTED, "w.pth")


def test_the_error_lists_what_is_missing_unexpected_and_misshaped_and_the_file():
    flat = tensors(**{"Conv_0/bias": np.ones((4, 1)), "Extra_0/bias": np.ones(2)})
    del flat["GroupNorm_0/scale"]
    with pytest.raises(ValueError) as caught:
        fit(flat, EXPECTED, "dir/w.pth")
    text = str(caught.value)
    assert text.startswith("dir/w.pth does not fit the network")
    assert r"1 missing: GroupNorm_0/scale (4,)" in text
    assert r"1 unexpected: Extra_0/bias (2,)" in text
    assert r"1 of another shape: Conv_0/bias (4, 1) instead of (4,)" in text


def test_the_error_stops_after_ten_names():
    with pytest.raises(ValueError, match="25 missing: .*p9 .*and 15 more"):
        fit({}, {f"p{i}": (2,) for i in range(25)}, "w")
    with pytest.raises(ValueError, match="10 missing: (?!.*more)"):
        fit({}, {f"p{i}": (2,) for i in range(10)}, "w")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_float_becomes_float32_and_integers_stay(dtype):
    flat = {"a": np.array([1.5, 2.0], dtype), "n": np.array([3], np.int32)}
    params = fit(flat, {"a": (2,), "n": (1,)}, "w")
    assert params["a"].dtype == np.float32 and params["a"].tolist() == [1.5, 2.0] and params["n"].dtype == np.int32
    assert fit(flat, {"a": (2,), "n": (1,)}, "w", dtype=np.float64)["a"].dtype == np.float64


def test_shapes_come_from_an_abstract_initialisation():
    structs = jax.eval_shape(lambda: {"Conv_0": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)}})
    assert shapes(structs) == {"Conv_0/kernel": (3, 3, 2, 4), "Conv_0/bias": (4,)}


def test_a_renamed_tensor_of_a_published_file_is_named():
    params = dict(checkpoints.read(PDS / "flax_vp_ddpmpp_continuous_tiny.msgpack").ema)
    expected = {name: array.shape for name, array in params.items()}
    params["Dense_7/kernel"] = params.pop("Dense_1/kernel")
    with pytest.raises(ValueError, match=r"(?s)1 missing: Dense_1/kernel .*1 unexpected: Dense_7/kernel"):
        fit(params, expected, "checkpoint_26")


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten(tree) == {"a/b/c": 1, "a/d": 2, "e": 3} and unflatten(flatten(tree)) == tree
