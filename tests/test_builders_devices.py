"""config.precision: what every convolution and product of the network is compiled with."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest

import models
import run_lib
from builders.devices import configure_jax
from builders.model import create_network
from configs import base


@pytest.fixture(autouse=True)
def settings_put_back():
    names = ("jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def products(jaxpr) -> list:
    """All convolutions and matrix products of a program, with those of the programs that it calls."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found.append(equation)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += products(inner)
    return found


def compiled_with(precision):
    """Precisions and operand types of the products of a small NCSN++ with attention."""
    configure_jax(precision)
    config = base.get_config()
    config.precision, config.data.image_size = precision, 16
    config.model.update(nf=8, ch_mult=(1, 1), num_res_blocks=1)
    network = create_network(config)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), models.param_shapes(network, (16, 16, 3))
    )
    x, labels = jnp.ones((1, 16, 16, 3), jnp.float32), jnp.ones(1, jnp.float32)
    closed = jax.make_jaxpr(network.apply)({"params": shapes}, x, labels)
    assert closed.out_avals[0].dtype == jnp.float32
    found = products(closed.jaxpr)
    assert len(found) > 20
    types = {str(operand.aval.dtype) for equation in found for operand in equation.invars}
    return {equation.params["precision"] for equation in found}, types


@pytest.mark.parametrize(("name", "expected"), [("float32", "HIGHEST"), ("tf32", "HIGH")])
def test_every_product_is_in_float32_at_the_precision_asked_for(name, expected):
    precisions, types = compiled_with(name)
    assert precisions == {(jax.lax.Precision[expected],) * 2}
    assert types == {"float32"}


def test_bfloat16_is_inside_the_network_only_and_its_output_is_float32():
    assert compiled_with("bfloat16")[1] == {"bfloat16", "float32"}


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="config.precision='float16' is unknown; choose one of"):
        configure_jax("float16")
    config = base.get_config()
    config.precision = "float16"
    with pytest.raises(SystemExit, match="ValueError: config.precision='float16'"):  # one line, no traceback
        run_lib.run("sample", run_lib.Request(config, None))


def test_small_programs_are_kept_too():
    configure_jax("float32")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0  # a second of every start
