"""`solver-model_<n>.pt` of the DSNO program: its order of modules, its attention, its recorded network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writers import Build, Call, Name, tensor, write_zip
from test_models_v_diffusion import RECORDED, small_config, weights

import checkpoints
import models
import run_lib
from builders import student_samplers
from checkpoints import operator_names
from checkpoints.base import flatten
from configs import methods

INNER = ("norm1", "conv1", "temb_proj", "norm2", "conv2", "nin_shortcut", "norm", "qkv", "proj_out")


def in_torch(flat, order):
    """Our parameters as the program's state dict: modules by number, queries, keys and values head by head."""
    found = {}
    for number, module in enumerate(order):
        inner = {
            path.removeprefix(f"{module}/"): value for path, value in flat.items() if path.startswith(f"{module}/")
        }
        if "q/kernel" in inner:
            c = inner["q/kernel"].shape[0]
            by_head = [inner[f"{part}/kernel"].transpose(1, 2, 0) for part in "qkv"]  # [heads, d, c]
            inner["qkv/kernel"] = np.stack(by_head, axis=1).reshape(3 * c, c, 1)
            inner["qkv/bias"] = np.stack([inner[f"{part}/bias"] for part in "qkv"], axis=1).reshape(3 * c)
            inner["proj_out/kernel"] = inner["proj_out/kernel"].reshape(c, c).T[..., None]
        names = [name for name in INNER if any(path.startswith(f"{name}/") for path in inner)] or [""]
        for name in names:
            where = ".".join(["all_modules", str(number), *filter(None, [name])])
            for leaf, theirs in (("weights", "weights"), ("scale", "weight"), ("kernel", "weight"), ("bias", "bias")):
                value = inner.get(f"{name}/{leaf}".lstrip("/"))
                if value is None:
                    continue
                if leaf == "kernel" and name not in ("qkv", "proj_out"):
                    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
                found[f"{where}.{theirs}"] = np.ascontiguousarray(value)
    return found


def written(path, model, ema):
    """A file as the program saves it, with the settings of the run and the milestones of its rate."""
    storages = {
        f"{part}{i}": value for part, flat in (("m", model), ("e", ema)) for i, value in enumerate(flat.values())
    }
    trees = [
        {name: tensor(value, f"{part}{i}") for i, (name, value) in enumerate(flat.items())}
        for part, flat in (("m", model), ("e", ema))
    ]
    args = Build(Call(Name("argparse", "Namespace"), ()), {"config": "configs/cifar.yaml"})
    scheduler = {"milestones": Call(Name("collections", "Counter"), ({100000: 1},))}
    whole = {"model": trees[0], "ema": trees[1], "optim": {"state": {}}, "scheduler": scheduler, "args": args}
    write_zip(path, whole, storages)
    return path


def config_of():
    config = methods.apply(small_config(), "dsno")
    config.dsno.update(teacher_steps=512, num_times=4, spacing="quadratic", head="teacher")
    return config


@pytest.fixture(scope="module")
def order():
    config = config_of()
    network = models.create_network("v_diffusion", config.model.to_dict(), mixing="fourier", num_times=4)
    return models.structure(network, (8, 8, 3)).order


def test_a_published_student_draws_the_recorded_trajectory(order, tmp_path):
    ema = in_torch(weights(), order)
    raw = {name: 0 * value for name, value in ema.items()}
    student = run_lib.load(config_of(), written(tmp_path / "solver-model_400.pt", raw, ema))
    assert (student.config.student.method, student.config.student.num_steps) == ("dsno", 1)
    operator = student_samplers.create_operator(student.denoiser, student.config)
    np.testing.assert_allclose(operator.told_times, RECORDED["dsno/t"], atol=1e-12)
    noise = jnp.asarray(RECORDED["dsno/x_nchw"]).transpose(0, 2, 3, 1)
    ours = jax.jit(type(operator).trajectory)(operator, noise).transpose(0, 1, 4, 2, 3)
    theirs = RECORDED["dsno/out_btchw"]
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_the_file_says_its_updates_and_both_sets_of_weights(order, tmp_path):
    ema = in_torch(weights(), order)
    stored = checkpoints.read(written(tmp_path / "solver-model_400.pt", {k: 0 * v for k, v in ema.items()}, ema))
    assert (stored.format, stored.step) == ("dsno_torch", 400)
    assert not any(value.any() for value in stored.raw.values()) and all(value.any() for value in stored.ema.values())
    other = {name: value[:1] for name, value in ema.items()}
    with pytest.raises(ValueError, match="'model' and 'ema' have different tensors"):
        checkpoints.read(written(tmp_path / "solver-model_4.pt", other, ema))


def test_queries_keys_and_values_are_kept_head_by_head():
    settings = {"nf": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "emb_ch": 16}
    network = models.create_network("v_diffusion", settings, num_head_channels=16, num_classes=3)
    shapes = {name: leaf.shape for name, leaf in flatten(models.param_shapes(network, (8, 8, 3))).items()}
    assert shapes["down_1.attn_0/q/kernel"] == (64, 4, 16)
    generator = np.random.default_rng(0)
    flat = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    order = models.structure(network, (8, 8, 3)).order
    found = operator_names.network_names(in_torch(flat, order), shapes, order, "solver-model_1.pt")
    assert set(found) == set(flat)
    for name, value in flat.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_file_of_another_depth_is_refused(order):
    flat = {name: value for name, value in weights().items() if not name.startswith("down_0.time_conv0")}
    shapes = {name: value.shape for name, value in weights().items()}
    with pytest.raises(ValueError, match="has 6 layers that are temporal where the network of the config has 7"):
        operator_names.network_names(in_torch(flat, order), shapes, order, "solver-model_1.pt")
