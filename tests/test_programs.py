"""What is compiled, without a clock: for every platform, without talk between devices, not again for other numbers."""

import copy
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import models
import run_lib
import sde_lib
from builders.devices import configure_jax
from builders.draw import image_keys
from builders.exported import create_program
from builders.model import create_network
from configs import base as base_config
from reports.compilation import CompileClock
from run_lib import Model
from sampling import base
from training import loop
from training.state import create_state

SHAPE = (8, 8, 3)
PLATFORMS = ("cpu", "cuda", "tpu")
FILTERED = {"method": "pds", "speed_up": 250.0, "freq_mask_path": "power:1.0"}
SAMPLERS = [FILTERED, {"method": "unipc"}, {"method": "heun"}, {"method": "edm"}, {"method": "ode"}]


def denoise(params, x, s):
    mean = params["mean"][None]
    return mean + (x - mean) / (1 + s[:, None, None, None] ** 2)


def model_of(**sampling):
    weights = {"mean": np.linspace(0, 1, 192, dtype=np.float32).reshape(SHAPE)}
    model = Model.from_function(denoise, weights, sde_lib.VESDE(), "x0", "sigma", (0, 1), SHAPE)
    model.config.sampling.update({"num_steps": 0 if "speed_up" in sampling else 6, "microbatch": 2} | sampling)
    return model


def unfit(module: str) -> list[str]:
    """What a TPU has not, or what leaves the device: float64, complex128, calls back to Python."""
    return re.findall(r"xf64>|tensor<f64>|complex<f64>|callback", module)


@pytest.fixture
def single_precision():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("sampling", SAMPLERS, ids=lambda sampling: sampling["method"])
def test_every_kind_of_sampler_is_lowered_for_every_platform(single_precision, sampling):
    model = model_of(**sampling)
    exported = create_program(model, run_lib.create_sampler(model, model.config), model.config)
    assert exported.platforms == PLATFORMS and unfit(exported.mlir_module()) == []


def test_a_training_step_of_the_network_is_lowered_for_every_platform(single_precision):
    config = base_config.get_config()
    config.data.image_size = 16
    config.model.update(nf=8, ch_mult=(1, 1), num_res_blocks=1)
    network = create_network(config)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), models.param_shapes(network, (16, 16, 3)))
    optimizer = loop.create_optimizer(1e-3, 0.9, 1e-8, 10, 1.0, 0.0, "cosine", 100)

    def step(state, x, labels):
        def loss(params):
            return jnp.square(network.apply({"params": params}, x, labels)).mean()

        updates, _ = optimizer.update(jax.grad(loss)(state.params), state.opt_state, state.params)
        return updates

    arguments = create_state(params, optimizer), jnp.zeros((2, 16, 16, 3)), jnp.ones(2)
    exported = jax.export.export(jax.jit(step), platforms=PLATFORMS)(*arguments)
    assert unfit(exported.mlir_module()) == []


def test_the_guard_sees_what_it_looks_for():
    double = jax.export.export(jax.jit(lambda x: x.astype(jnp.float64) * 2))(jax.ShapeDtypeStruct((3,), np.float32))
    assert "xf64>" in unfit(double.mlir_module())
    called = jax.jit(lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), np.float32), x))
    assert "callback" in unfit(called.lower(jax.ShapeDtypeStruct((), np.float32)).as_text())


@pytest.mark.parametrize("sampling", [FILTERED, {"method": "unipc"}], ids=lambda sampling: sampling["method"])
def test_devices_draw_their_images_without_a_word_to_one_another(sampling):
    model = model_of(**sampling)
    sampler = run_lib.create_sampler(model, model.config)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    operands, state = base.begin_on(mesh, sampler, image_keys(0, range(4)))
    split = base._split((operands, state))
    assert split is not None
    rows = jax.tree.map(lambda leaf: leaf[:2].astype(np.float32) if leaf.dtype.kind == "f" else leaf[:2], sampler.rows)
    lowered = base._scan_chunk.lower(sampler.step, split, operands, state, rows, jnp.ones(2, bool))
    program = lowered.compile().as_text()
    assert re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", program) == []


def test_numbers_that_change_between_runs_do_not_compile_again():
    model = model_of(**FILTERED)
    run_lib.sample(model, {}, range(4))
    before = base._scan_chunk._cache_size()
    run_lib.sample(model, {}, range(4))
    for change in ({"speed_up": 100.0}, {"snr": 0.3}, {"alpha": 7.0}, {"num_steps": 3}):
        run_lib.sample(model, change, range(4))
    assert base._scan_chunk._cache_size() == before


@pytest.mark.parametrize("sampling", [FILTERED, {"method": "pc"}, {"method": "unipc"}], ids=lambda s: s["method"])
def test_a_turn_of_the_loop_holds_one_network_call(sampling):
    traced = []

    def noted(params, x, s):
        traced.append(x.shape)
        return denoise(params, x, s)

    model = model_of(**sampling)
    model = dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, network=noted))
    sampler = run_lib.create_sampler(model, model.config)
    row = jax.tree.map(lambda leaf: leaf[0], sampler.rows)
    begun = jax.eval_shape(sampler.begin, image_keys(0, range(2)))
    traced.clear()
    jax.eval_shape(sampler.step, *begun, row)
    assert traced == [(2, *SHAPE)]  # a second would double what is compiled


class Line(NamedTuple):
    x: jax.Array


def scaled(factor, state, row):
    return Line(state.x * factor * row["by"]), ()


def test_memory_is_that_of_the_program_that_ran_whatever_the_steps_and_asking_compiles_nothing():
    def run(size, steps):
        factor, rows = jnp.ones(size), {"by": np.linspace(1, 2, steps)}
        state, _ = base.integrate(scaled, factor, Line(jnp.ones(size)), rows, chunk=4)
        before = base._scan_chunk._cache_size()
        with CompileClock() as clock:
            found = base.chunk_memory(scaled, factor, state, rows, chunk=4)
        assert (base._scan_chunk._cache_size(), clock.seconds) == (before, 0)
        return found

    least, item = run(1000, 3), jnp.ones(1).dtype.itemsize
    assert 4000 * item > run(1000, 9) == least >= 2000 * item, "operands and state; results take the state's place"
    assert 8000 * item > run(3000, 3) - least >= 4000 * item


def test_sampling_imports_nothing_heavy():
    heavy = (
        "torch",
        "tensorflow",
        "tensorflow_datasets",
        "orbax",
        "matplotlib",
        "grain",
        "scipy",
        "optax",
    )
    program = f"import sys, run_lib, modes.sample; print([name for name in {heavy!r} if name in sys.modules])"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_demo_network_takes_the_arithmetic_that_its_size_says():
    configure_jax("float32")
    config = copy.deepcopy(run_lib.load_config_file("configs/ve/demo.py"))
    network = create_network(config)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), models.param_shapes(network, (32, 32, 3))
    )
    x, labels = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.float32)
    compiled = jax.jit(network.apply).lower({"params": params}, x, labels).compile()
    assert abs(compiled.cost_analysis()["flops"] / 13.9e9 - 1) < 0.03
    # Ten maps of 16 images, 32 x 32 pixels and 32 channels: the skips, and a few layers at once.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.2 * 21e6
