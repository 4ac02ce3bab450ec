"""The unofficial progressive-distillation `.pt`: its U-Net, its two numbers, and the config that follows from them."""

import functools
import json

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import GOLDENS

import checkpoints
import models
import run_lib
import sde_lib
from builders import student_samplers
from builders.grids import create_grid
from configs import pd_unofficial
from sampling import base
from sampling import published_distillation as published
from sampling.base import TimeGrid

# The unofficial program's own table for 8 steps (diffusion_distiller, commit 666b26b).
ALPHA_BARS_OF_8 = [
    0.957804591,
    0.847012161,
    0.684226566,
    0.49384359,
    0.304394889,
    0.144272102,
    0.0374719548,
    3.74719548e-05,
]
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def golden():
    with np.load(GOLDENS / "pd_unet" / "pd_unet.npz") as file:
        return {key: file[key] for key in file.files}


def weights(name):
    """The state dict of the recorded network, and its input, by the recipe of tests/goldens/pd_unet/README.md."""
    rng, tensors = np.random.RandomState(0), {}
    for key, shape in json.loads(str(golden()[f"{name}/shapes"])).items():
        z = rng.standard_normal(shape)
        if z.ndim > 1:
            z /= np.sqrt(np.prod(shape[1:]))
        else:
            z = 1 + 0.2 * z if key.endswith("weight") else 0.1 * z
        tensors[key] = z.astype(np.float32)
    return tensors, rng.standard_normal((2, 3, 8, 8)).astype(np.float32)


def write_student(path, tensors, n_timesteps=8, time_scale=128, **more):
    with_buffer = tensors | {"time.0.inv_freq": np.ones(8, np.float32)}
    state = {name: writers.tensor(value, str(k)) for k, (name, value) in enumerate(with_buffer.items())}
    tree = {"G": state, "n_timesteps": n_timesteps, "time_scale": time_scale, **more}
    writers.write_zip(path, tree, {str(k): value for k, value in enumerate(with_buffer.values())})
    return path


@pytest.mark.parametrize(("name", "heads"), [("affine", 4), ("added", 2)])
def test_the_network_of_a_student_equals_its_transcription(name, heads, tmp_path):
    tensors, x = weights(name)
    stored = checkpoints.read(write_student(tmp_path / "checkpoint.pt", tensors))
    config = run_lib.resolve_config(None, stored)
    config.model.num_heads, config.data.image_size = heads, 8
    model = run_lib.load(config, tmp_path / "checkpoint.pt")
    assert config.model.attn_strides == {"affine": (2,), "added": (1, 4)}[name]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.denoiser.params)
    # It reads and writes blue, green, red; its labels are steps of 1024, ours levels of the student.
    rgb = jnp.asarray(x[:, ::-1].transpose(0, 2, 3, 1), jnp.float64)
    levels = jnp.asarray(golden()[f"{name}/labels"]) / 128
    network = jax.jit(model.denoiser.network, compiler_options=FAST_COMPILE)
    ours = np.asarray(network(params, rgb, levels)).transpose(0, 3, 1, 2)[:, ::-1]
    theirs = golden()[f"{name}/output"]
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-10


def test_a_student_carries_its_steps_its_schedule_and_what_it_predicts(tmp_path):
    stored = checkpoints.read(write_student(tmp_path / "student.pt", weights("affine")[0], 8, 128))
    assert stored.format == "distillation_torch" and stored.config == {"n_timesteps": 8, "time_scale": 128}
    config = run_lib.resolve_config(None, stored)
    sde = sde_lib.create_sde(**config.sde.to_dict())
    np.testing.assert_allclose(np.cumprod(1 - sde.discrete_betas()), ALPHA_BARS_OF_8, rtol=1e-7)
    assert (config.model.predicts, config.data.centered, config.sampling.method) == ("v", True, "ddim")
    assert (config.model.time_scale, config.model.affine_time, config.model.nf) == (128, True, 16)
    model = run_lib.Model.from_function(lambda params, x, labels: x, {}, sde, "v", "index", (-1.0, 1.0), (8, 8, 3))
    grid = create_grid(model, config, None)
    levels = sde.time(grid.s[:-1]) * 7
    np.testing.assert_allclose(levels, np.arange(7, -1, -1), atol=1e-9)
    assert grid.s[-1] == 0
    config.sampling.num_steps = 5
    with pytest.raises(ValueError, match="has 8 steps, --steps asks for 5"):
        create_grid(model, config, None)


def test_a_student_takes_every_kth_step_on_a_chain_of_its_own(tmp_path):
    path = write_student(tmp_path / "student.pt", weights("affine")[0], 8, 128)
    model = run_lib.load(checkpoint=path)
    assert student_samplers.every_kth(model, model.config)[0] is model
    model.config.sampling.num_steps = 4
    coarse, config = student_samplers.every_kth(model, model.config)
    assert coarse.denoiser.network.module.time_scale == 256 and coarse.sde.num_scales == 4
    # Its levels are those of 4 steps, which the last one shows: the largest beta is held at 0.999.
    abar = np.cos((np.arange(5) / 4 + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = np.cumprod(1 - np.minimum(1 - abar[1:] / abar[:-1], 0.999))
    np.testing.assert_allclose(np.cumprod(1 - coarse.sde.discrete_betas()), expected, rtol=1e-12)
    assert create_grid(coarse, config, None).num_steps == 4 and model.config.sde.num_scales == 8
    model.config.sampling.num_steps = 3
    with pytest.raises(ValueError, match="--steps=3: this student was made for 8 steps; it can take 1, 2, 4, 8"):
        run_lib.create_sampler(model, model.config)


@pytest.mark.parametrize("sampler", ["posterior", "clipped"])
def test_the_samplers_of_its_program_stand_in_the_place_of_ddim(sampler):
    config = run_lib.resolve_config("configs/vp/v_diffusion/cifar10.py:ddim")
    model = run_lib.Model.from_function(lambda params, x, s: 0.5 * x, {}, sde_lib.CosineVPSDE(), "x0", "sigma")
    config.sampling.num_steps = 4
    config.sampling.compat.sampler = sampler
    config.sampling.compat.update(variance="large", eta=0.5)
    made = run_lib.create_sampler(model, config)
    assert made.nfe == 4
    s = create_grid(model, config, None).s
    steps = {"posterior": published.ancestral, "clipped": published.clipped}[sampler]
    expected = steps(TimeGrid(s, s), 1 / np.sqrt(1 + s**2), {"posterior": "large", "clipped": 0.5}[sampler])
    np.testing.assert_allclose(made.rows.noise_std, expected.noise_std, rtol=1e-9)
    keys = jax.random.split(jax.random.key(0), 2)
    images = made.image(base.integrate(made.step, *made.begin(keys), made.rows)[0])
    config.sampling.compat.sampler = ""
    plain = run_lib.create_sampler(model, config)
    assert not np.allclose(images, plain.image(base.integrate(plain.step, *plain.begin(keys), plain.rows)[0]))


def test_what_the_published_samplers_cannot_draw_is_refused():
    config = run_lib.resolve_config("configs/ve/demo.py:ddim")
    model = run_lib.Model.from_function(lambda params, x, s: x, {}, sde_lib.VESDE(), "x0", "sigma", (0.0, 1.0))

    def create(**changes):
        config.sampling.compat.update(changes)
        return run_lib.create_sampler(model, config)

    with pytest.raises(ValueError, match="config.sampling.compat.sampler='clip' is unknown"):
        create(sampler="clip")
    with pytest.raises(
        ValueError, match=r"'clipped' is for images in \[-1, 1\], and those of this model are in \(0.0, 1"
    ):
        create(sampler="clipped")
    with pytest.raises(ValueError, match="config.sampling.compat.variance='huge' is unknown"):
        create(sampler="posterior", variance="huge")
    config.sampling.method = "heun"
    with pytest.raises(ValueError, match="stands in the place of DDIM, and --method=heun is none of"):
        create(variance="small")


def test_the_published_network_has_its_published_shape():
    published = models.create_network("pd_unet", {})
    shapes = models.param_shapes(published, (256, 256, 3))
    assert shapes["down_11_resblocks"]["conv1"]["kernel"].shape == (3, 3, 448, 448)
    assert {name for name in shapes if name.startswith("down") and name.endswith("attention")} == {
        f"down_{number}_attention" for number in (10, 11, 13, 14)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_timesteps": "8"}, "n_timesteps is '8', not a positive number"),
        ({"time_scale": 0}, "time_scale is 0, not a positive number"),
    ],
)
def test_numbers_that_are_none_are_refused_with_the_file(changes, message, tmp_path):
    path = write_student(tmp_path / "student.pt", {"a": np.ones(1, np.float32)}, **changes)
    with pytest.raises(ValueError, match=f"student.pt: {message}"):
        checkpoints.read(path)


def test_another_network_under_its_keys_is_refused():
    steps = {"n_timesteps": 8, "time_scale": 128}
    with pytest.raises(ValueError, match="student.pt: 'G' has no down.0.weight"):
        pd_unofficial.translate({"conv.weight": (3, 3)}, steps, "student.pt")
    shapes = {key: tuple(shape) for key, shape in json.loads(str(golden()["affine/shapes"])).items()}
    extra = {"down.4.resblocks.conv1.weight": (32, 32, 3, 3)}
    with pytest.raises(ValueError, match=r"its levels have \[1, 2\] residual blocks"):
        pd_unofficial.translate(shapes | extra, steps, "student.pt")


def test_an_unknown_order_of_channels_is_refused():
    with pytest.raises(ValueError, match="channel_order='gbr' is unknown"):
        models.create_network("pd_unet", {"channel_order": "gbr"})
