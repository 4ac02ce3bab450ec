"""DSNO of the U-Net of progressive distillation, with classes and without; distances in a network's features."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import run_lib
from benchmarks.random_weights import random_weights
from builders import dsno as builder
from builders.model import Model, create_denoiser, create_network
from checkpoints import fitting, native
from checkpoints.base import flatten, unflatten
from configs import methods
from configs.adm import c64
from configs.vp.v_diffusion import cifar10_dsno_t4, imagenet64_dsno_t4
from data import store
from models.denoiser import Denoiser
from modes import train
from modes.request import Request
from sde_lib import CosineVPSDE
from training import dsno

SIZE = {"nf": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "emb_ch": 16, "num_head_channels": 16}


def config_of(**changes):
    """The preset of ImageNet with a small network, three classes and four steps of its teacher."""
    config = methods.apply(imagenet64_dsno_t4.get_config(), "dsno")
    config.model.update(SIZE)
    config.data.update(image_size=8, num_classes=3)
    config.dsno.update({"num_times": 2, "teacher_steps": 4, "num_trajectories": 6} | changes)
    config.training.update(num_steps=2, batch_size=4, microbatch=0, log_every=1, checkpoint_every=1, sample_every=9)
    config.sampling.microbatch = 4
    return config


def weights_of(config):
    network = create_network(config)
    flat = random_weights(dict(fitting.shapes(models.param_shapes(network, (8, 8, 3)))))
    return jax.tree.map(jnp.asarray, unflatten(flat))


@pytest.fixture(scope="module")
def model():
    config = config_of()
    return Model(create_denoiser(config, weights_of(config)), config, "aa")


def test_the_image_head_of_two_and_all_other_weights_are_kept(model):
    operator, new = builder.create_student(model, builder.student_config(model, (0.5, 0.0)))
    ours, theirs = flatten(operator.params), flatten(model.denoiser.params)
    assert new and all("time_conv" in name for name in new) and set(ours) - set(new) == set(theirs)
    for name in theirs:
        kept = theirs[name][..., :3] if name.startswith("conv_out/") else theirs[name]
        np.testing.assert_array_equal(ours[name], kept)
    # The head that is kept puts out the image as it is.
    assert (operator.sigma_data, operator.told_times) == (1.0, (0.5, 0.0))


@pytest.mark.slow
def test_adms_network_becomes_an_operator_by_name():
    config = methods.apply(c64.get_config(), "dsno")
    config.model.update(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_head_channels=16)
    config.data.update(image_size=8, num_classes=3)
    teacher = Model(create_denoiser(config, weights_of(config)), config, "aa")
    builder.check(teacher)
    operator, new = builder.create_student(teacher, builder.student_config(teacher, (0.5, 0.25, 0.0)))
    assert {name.split("/")[0] for name in new if "time" not in name} == {"out_2"}
    blocks = [f"input_blocks_{n}" for n in (1, 3)] + ["middle_block"] + [f"output_blocks_{n}" for n in range(4)]
    assert {name for name in new if "time" in name} == {f"{block}_time/weights" for block in blocks}
    kept = set(flatten(teacher.denoiser.params)) & set(flatten(operator.params)) - set(new)
    assert len(kept) == len(flatten(teacher.denoiser.params)) - 2
    told = operator.given(classes=jnp.array([1]))
    assert jax.eval_shape(type(told).trajectory, told, jnp.zeros((1, 8, 8, 3))).shape == (1, 3, 8, 8, 3)


def test_what_an_operator_cannot_keep_or_follow_is_refused(model):
    def checked(**changes):
        config = config_of()
        config.update_from_flattened_dict(changes)
        builder.check(Model(create_denoiser(config, model.denoiser.params), config, "aa"))

    checked()
    with pytest.raises(ValueError, match="config.dsno.head='old' is unknown"):
        checked(**{"dsno.head": "old"})
    with pytest.raises(ValueError, match="config.dsno.head='teacher' keeps a convolution that predicts 'v'"):
        checked(**{"model.predicts": "v", "model.head": "single"})
    with pytest.raises(ValueError, match="knows no time below 0.0625: take at most 16 steps"):
        checked(**{"sde.end_time": 1 / 16, "dsno.teacher_steps": 32})
    checked(**{"sde.end_time": 1 / 16, "dsno.teacher_steps": 16})
    with pytest.raises(ValueError, match="cfg_scale=3: DSNO learns without guidance"):
        checked(**{"guidance.cfg_scale": 3.0})
    with pytest.raises(ValueError, match="config.model.name='ddpm': config.training.method='dsno' trains ncsnpp, v_d"):
        config = config_of()
        config.model.name = "ddpm"
        builder.check(Model(model.denoiser, config, "aa"))


def test_the_teacher_steps_evenly_in_time_from_noise_that_no_image_of_a_run_begins_with(model):
    teacher = builder.create_teacher(model, model.config)
    scales = [float(part) for part in teacher.config.sampling.grid.split(",")]
    np.testing.assert_allclose(scales[:-1], model.sde.noise_scale(np.array([1, 0.75, 0.5, 0.25])), rtol=1e-12)
    assert scales[-1] == 0.0 and teacher.sampler.nfe == 4
    np.testing.assert_allclose(teacher.path.label_times, (0.5, 0.0), atol=1e-12)
    assert teacher.config.seed == model.config.seed + 104_729 and teacher.config.pairs.target == "x0"


def test_every_setting_of_the_loss_and_of_the_output_is_the_configs():
    config = config_of(distance="huber", weighting="ones", weight_cap=50.0, huber=0.2)
    assert builder.loss_settings(config) == dsno.OperatorLoss("huber", "ones", 50.0, 0.2)
    config.student.times, config.model.sigma_data, config.data.centered = "0.5,0.25,0.0", 0.3, False
    convention = Denoiser(jnp.ones(2), pytest.fail, CosineVPSDE(), "x0", "sigma")
    operator = builder.create_operator(convention, config)
    assert (operator.times, operator.sigma_data, operator.centered) == ((0.5, 0.25, 0.0), 0.3, False)
    output = dataclasses.replace(operator, network=lambda params, x, labels: x).trajectory(jnp.ones((1, 2, 2, 3)))
    np.testing.assert_allclose(output, (0.3 + 1) / 2, rtol=1e-6)  # from [-1, 1] to the data range


def test_trajectories_without_classes_are_refused_where_the_network_is_told_them(model, tmp_path):
    spec = store.Specification(model.shape, 1, 0, {}, {})
    store.create(tmp_path, spec)
    with pytest.raises(ValueError, match="has no classes, which this network is told"):
        builder.open_trajectories(model, str(tmp_path))


@pytest.mark.parametrize(
    ("preset", "times"),
    [(cifar10_dsno_t4, (0.5625, 0.25, 0.0625, 0)), (imagenet64_dsno_t4, (0.75, 0.5, 0.25, 0))],
)
def test_the_presets_have_the_published_times_weights_and_sizes(preset, times):
    config = preset.get_config()
    own = config.dsno
    found, _ = dsno.stored_times(own.spacing, own.teacher_steps, own.num_times)
    np.testing.assert_allclose(found, times)
    config.update_from_flattened_dict({"model.mixing": own.mixing, "model.num_times": 4, "model.head": "single"})
    side = config.data.image_size
    shapes = models.param_shapes(create_network(config), (side, side, 3))
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert millions == pytest.approx(65.77 if side == 32 else 329.23, abs=0.005)


def test_the_perceptual_distance_is_of_unit_vectors_and_summed_over_maps(tmp_path):
    a, b = np.random.default_rng(0).uniform(size=(2, 3, 4, 4, 2))

    def features(images):
        return [images, 3.0 * images[:, ::2, ::2]]

    def unit(part):
        return part / np.linalg.norm(part, axis=-1, keepdims=True)

    pairs = zip(features(a), features(b), strict=True)
    expected = sum(((unit(u) - unit(v)) ** 2).sum(-1).mean((1, 2)) for u, v in pairs)
    np.testing.assert_allclose(dsno.perceptual(features, jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-8)
    settings = dsno.OperatorLoss("perceptual", features=features)
    both = dsno.distances(settings, jnp.asarray(np.stack([a, b], 1)), jnp.asarray(np.stack([b, b], 1)))
    np.testing.assert_allclose(both, np.stack([expected, 0 * expected], 1), rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="config.dsno.distance='perceptual' needs a network"):
        builder.loss_settings(config_of(distance="perceptual"))
    (tmp_path / "mine.py").write_text("def make_features():\n    return lambda images: [images]\n")
    found = builder.loss_settings(config_of(distance="perceptual", features=f"{tmp_path}/mine.py:make_features"))
    assert found.features is not None


@pytest.mark.slow
def test_a_class_conditional_student_learns_each_images_class_in_any_precision(tmp_path):
    config = config_of()
    teacher = tmp_path / "teacher.safetensors"
    native.write(teacher, weights_of(config), json.loads(config.to_json_best_effort()), {})
    losses = {}
    for name, changes in {
        "whole": {},
        "accumulated": {"training.microbatch": 2},
        "bfloat16": {"precision": "bfloat16"},
    }.items():
        own = config_of(trajectories=str(tmp_path / "whole" / "trajectories") if losses else "")
        own.checkpoint = str(teacher)
        own.update_from_flattened_dict(changes)
        train.run(Request(own, tmp_path / name))
        lines = (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    np.testing.assert_allclose(losses["accumulated"], losses["whole"], rtol=1e-5)
    np.testing.assert_allclose(losses["bfloat16"], losses["whole"], rtol=0.05)
    found = store.open_store(tmp_path / "whole" / "trajectories")
    assert found.read(range(6)).label.tolist() == [0, 1, 2, 0, 1, 2]
    student = run_lib.load(checkpoint=str(tmp_path / "whole" / "checkpoints" / "dsno.safetensors"))
    first, second = (run_lib.sample(student, {"labels": label}, range(1)).images for label in ("0", "1"))
    assert first.shape == (1, 8, 8, 3) and not np.allclose(first, second, atol=1e-4)
