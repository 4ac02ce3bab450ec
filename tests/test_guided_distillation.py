"""Students that are told a guidance scale: their teacher, their layer, their file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import run_lib
from benchmarks.random_weights import random_weights
from builders import distillation
from builders.model import Model, create_denoiser, create_network
from checkpoints import fitting, native
from checkpoints.base import unflatten
from configs import methods
from configs.vp.v_diffusion import cifar10
from models.classifier_free import guided, guided_teacher
from models.denoiser import Denoiser
from modes import train
from modes.request import Request
from sde_lib import CosineVPSDE

SIZE = {"nf": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "emb_ch": 16}


def config_of(scales=(0.0, 4.0)):
    config = methods.apply(cifar10.get_config(), "progressive_distillation")
    config.model.update(SIZE)
    config.data.update(image_size=8, num_classes=3, null_class=3)
    config.distill.update(data="teacher", start_steps=2, end_steps=1, guidance=scales)
    config.training.update(num_steps=2, batch_size=4, log_every=1, checkpoint_every=1)
    config.sampling.microbatch = 4
    return config


def model_of(config):
    flat = random_weights(dict(fitting.shapes(models.param_shapes(create_network(config), (8, 8, 3)))))
    return Model(create_denoiser(config, jax.tree.map(jnp.asarray, unflatten(flat))), config, "aa")


def test_the_teacher_follows_the_scale_of_each_image():
    def network(params, x, labels, classes):
        return x * (1 + classes[:, None, None, None])

    plain = Denoiser(None, network, CosineVPSDE(), "x0", "sigma")
    x, t = jnp.ones((3, 2, 2, 1)), jnp.full(3, 0.5)
    classes, scales = jnp.array([0, 1, 1]), jnp.array([1.0, 0.0, 4.0])
    found = guided_teacher(plain, null_class=2).given(classes=classes, guidance=scales).output_at(x, t)
    for i, scale in enumerate([1.0, 0.0, 4.0]):
        one = guided(plain.given(classes=classes[i : i + 1]), {"classes": jnp.array([2])}, scale)
        np.testing.assert_allclose(found[i], one.output_at(x[:1], t[:1])[0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0, 0, 0], [1, 3, 3 + 4 * (2 - 3)], rtol=1e-6)


def test_the_layer_that_is_told_the_scale_begins_as_nothing_and_is_asked_for_it():
    config = config_of()
    model = model_of(config)
    first = distillation.template(config, model)
    assert set(first.params) - set(model.denoiser.params) == {distillation.GUIDANCE_LAYER}
    x, labels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32), jnp.ones(2)
    classes, scales = jnp.array([0, 2]), jnp.array([0.5, 3.0])
    plain = model.denoiser.given(classes=classes).output(x, labels)
    told = jax.jit(lambda d: d.given(classes=classes, guidance=scales).output(x, labels))
    np.testing.assert_allclose(told(first), plain, atol=3e-5)
    layer = {"kernel": jnp.ones((32, 16)), "bias": jnp.zeros(16)}
    trained = Denoiser({**first.params, distillation.GUIDANCE_LAYER: layer}, first.network, first.sde, "x0", "sigma")
    assert np.abs(told(trained) - plain).max() > 1e-3
    with pytest.raises(ValueError, match="told a guidance scale and was given none; set config.guidance.cfg_scale"):
        first.given(classes=classes).output(x, labels)


def test_scales_that_cannot_be_told_are_refused():
    for scales in ((4.0,), (4.0, 1.0)):
        with pytest.raises(ValueError, match=r"config.distill.guidance=\(4.0.*must be \(low, high\)"):
            distillation.guidance_range(config_of(scales))
    config = config_of()
    config.data.null_class = -1
    with pytest.raises(ValueError, match="needs a class that means none.*3 is a class of zeros"):
        distillation.guidance_range(config)
    config.model.name = "adm"
    with pytest.raises(ValueError, match="config.model.name='adm' has no layer that is told a guidance scale"):
        distillation.guidance_range(config)
    assert distillation.guidance_range(config_of(())) is None
    # A stage at equal steps comes first, in which the student learns to be guided.
    model = model_of(config_of())
    assert [stage.num_steps for stage in distillation.create_stages(config_of(), model)] == [2, 1]
    assert [stage.num_steps for stage in distillation.create_stages(config_of(()), model)] == [1]


@pytest.mark.slow
def test_a_guided_student_is_told_a_scale_at_one_call_a_step(tmp_path):
    config = config_of()
    model = model_of(config)
    teacher = tmp_path / "teacher.safetensors"
    native.write(teacher, model.denoiser.params, json.loads(config.to_json_best_effort()), {})
    config.distill.teacher = str(teacher)
    train.run(Request(config, tmp_path / "W"))
    rows = [json.loads(line) for line in (tmp_path / "W" / distillation.ROWS).read_text().splitlines()]
    assert [(row["steps"], row["calls"]) for row in rows] == [(2, 2), (1, 1)]
    student = run_lib.load(checkpoint=str(tmp_path / "W" / "checkpoints" / "student_1.safetensors"))
    assert student.config.guidance.cfg_scale == 2.0
    drawn = {}
    for scale in (0.0, 4.0):
        student.config.guidance.cfg_scale = scale
        drawn[scale] = run_lib.sample(student, {"labels": "1"}, range(2))
    assert drawn[0.0].nfe == 1 and not np.array_equal(drawn[0.0].images, drawn[4.0].images)
    student.config.guidance.cfg_scale = 5.0
    with pytest.raises(ValueError, match="cfg_scale=5: this student was told guidance scales from 0 to 4"):
        run_lib.sample(student, {}, range(1))
