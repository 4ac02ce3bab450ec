"""Every key of config.distill and config.consistency reaches the targets; teachers, grids and scales are right."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from builders import distillation as builder
from builders import students
from builders.model import Model
from configs import base
from models.classifier_free import GuidedTeacher
from models.denoiser import Denoiser
from modes import train_score_matching
from sampling import time_grids
from sde_lib import VESDE, VPSDE
from training import score_matching


def network(params, x, labels, **conditions):
    return x


def model_of(sde, **distill) -> Model:
    config = base.get_config()
    config.data.update(image_size=4, centered=isinstance(sde, VPSDE), num_classes=3, null_class=3)
    config.model.name = "v_diffusion"
    config.training.update(batch_size=12, num_steps=7)
    config.distill.update({"start_steps": 4, "end_steps": 2, "data": "teacher"} | distill)
    config.seed = 5
    return Model(Denoiser(jnp.zeros(()), network, sde, "x0", "sigma"), config, "aa")


VE, VP = VESDE(0.02, 20.0), VPSDE(end_time=2e-3)


def test_a_teacher_steps_evenly_in_time_to_the_image_or_on_a_grid_by_name():
    model = model_of(VE, grid="time")
    expected = [20.0, 20 * 1000**-0.25, 20 * 1000**-0.5, 20 * 1000**-0.75, 0.0]
    np.testing.assert_allclose(builder.teacher_grid(model.config, model), expected, rtol=1e-12)
    model.config.distill.grid = "logsnr"
    named = time_grids.make("logsnr", 4, 20.0, float(VE.noise_scale(np.float64(1e-5))), VE).s
    np.testing.assert_allclose(builder.teacher_grid(model.config, model), named, rtol=1e-12)
    model.config.student.update(method="distilled", num_steps=4, grid="20.0,3.0,1.0,0.1,0.0")
    np.testing.assert_array_equal(builder.teacher_grid(model.config, model), [20, 3, 1, 0.1, 0])


def test_only_the_first_teacher_may_step_by_heun_and_every_setting_reaches_the_target():
    for sde in (VE, VP):
        config = model_of(sde, solver="heun", weighting="v", target="x2", clip=True).config
        first, later = builder.settings_of(config, True), builder.settings_of(config, False)
        assert dataclasses.astuple(first) == ("v", "x2", "heun", True, sde is VP)
        assert later == dataclasses.replace(first, solver="ddim")


def test_targets_on_paths_begin_at_the_prior_and_only_the_first_teacher_is_guided():
    model = model_of(VP, guidance=(0.5, 4.0))
    stages = builder.create_stages(model.config, model)
    assert [(stage.num_steps, stage.factor) for stage in stages] == [(4, 1), (2, 2)]
    first, later = (builder.create_targets(model.config, stages[-1], model, own, None) for own in (True, False))
    for found in (first, later):
        assert (found.batch_size, found.shape, found.seed) == (12, (4, 4, 3), 5)
        assert tuple(found.conditions) == (3, (0.5, 4.0))
        np.testing.assert_allclose(
            found.prior_scale, 1 / VP.alpha(np.float64(1.0)), rtol=1e-9
        )  # y = x/alpha, x ~ N(0, 1)
    assert isinstance(first.teacher, GuidedTeacher) and first.teacher.null_class == 3
    assert later.teacher.network is model.denoiser.network and later.teacher.params == model.denoiser.params


def test_updates_are_those_of_each_stage():
    model = model_of(VE, end_steps=1)
    stages = builder.create_stages(model.config, model)
    assert builder.updates_of(model.config, stages) == [7, 7]
    model.config.distill.updates = (3, 9)
    assert builder.updates_of(model.config, stages) == [3, 9]


def test_consistency_knows_its_process_its_range_and_its_settings():
    own = {"huber": 0.1, "weighting": "ones", "shrink": 3.0, "doubling_steps": 9, "mean": -0.5, "std": 1.5}
    for sde in (VE, VP):
        model = model_of(sde)
        model.config.consistency.update(own)
        settings = builder.consistency_settings(model.config, model)
        assert {key: getattr(settings, key) for key in own} == own and settings.centered == (sde is VP)
        s_min, s_max = (float(sde.noise_scale(np.float64(t))) for t in (sde.end_time, 1.0))
        np.testing.assert_allclose([settings.s_min, settings.s_max], [s_min, s_max], rtol=1e-12)
        pairs = builder.create_pairs(model.config, settings, model, None)
        np.testing.assert_allclose(pairs.prior_scale, sde.prior_sigma / sde.alpha(np.float64(1.0)), rtol=1e-9)
        assert (pairs.batch_size, pairs.seed, pairs.num_classes, len(pairs.grid)) == (12, 5, 3, 5)


class NoImages:
    """A source that is handed on and never asked."""

    def batch(self, step):
        raise NotImplementedError


def test_a_teacher_steps_between_points_of_images_only_if_it_is_asked_to():
    model, images = model_of(VE), NoImages()
    settings = builder.consistency_settings(model.config, model)
    found = [builder.create_pairs(model.config, settings, model, images)]
    model.config.consistency.teacher_step = True
    found.append(builder.create_pairs(model.config, settings, model, images))
    assert [pairs.teacher for pairs in found] == [None, model.denoiser]
    assert all(pairs.images is images and pairs.classes and pairs.seed == 5 for pairs in found)


def test_a_students_file_says_what_it_was_told():
    model = model_of(VE, guidance=(0.5, 4.0), predicts="eps")
    own = builder.student_config(model.config, "distilled", np.array([20.0, 1 / 3, 0.0]), 0.02)
    assert own.sampling.grid == own.student.grid == f"20.0,{1 / 3!r},0.0"
    assert (own.student.method, own.student.num_steps, own.student.s_min) == ("distilled", 2, 0.02)
    assert (own.student.guidance, own.guidance.cfg_scale, own.model.predicts) == ("0.5,4.0", 2.25, "eps")
    edm = builder.student_config(model_of(VE, predicts="edm").config, "distilled", np.array([20.0, 0.0]), 0.02)
    assert (edm.model.scaling, edm.model.predicts, edm.student.guidance) == ("edm", "x0", "")


def test_a_published_student_knows_the_times_of_its_steps_and_none_below():
    stored = SimpleNamespace(extra={"num_sample_steps": 8}, format="distillation_flax", path=Path("student"))
    config = base.get_config()
    config.sampling.num_steps = 0
    students.follow(config, stored)
    assert (config.sampling.num_steps, config.sde.end_time) == (8, 1 / 8)
    config.sampling.num_steps = 4
    with pytest.raises(ValueError, match="was distilled for 8 steps.*--steps asks for 4"):
        students.follow(config, stored)


def test_fewer_steps_than_it_was_made_for_suit_a_consistency_student_alone():
    config = base.get_config()
    for method, refused in (("distilled", (2, 5)), ("consistency", (5,))):
        config.student.update(method=method, num_steps=4, grid="20.0,3.0,1.0,0.1,0.0")
        for asked in (0, 2, 4, 5):
            config.sampling.update(method=method, num_steps=asked)
            if asked in refused:
                with pytest.raises(ValueError, match=f"--steps={asked}: this student takes .*4 steps"):
                    students.check(config)
            else:
                students.check(config)


def test_every_setting_of_score_matching_reaches_the_loss(tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def seen(**settings):
        raise Seen(settings)

    monkeypatch.setattr(score_matching, "ScoreMatching", seen)
    config = model_of(VP).config
    own = {"weighting": "edm", "noise_levels": "lognormal_mix", "reduce_mean": True}
    own |= {"lognormal_mean": -0.3, "lognormal_std": 0.7, "lognormal_share": 0.9}
    config.training.update(own)
    config.model.sigma_data = 0.3
    with pytest.raises(Seen) as caught:
        train_score_matching.train(config, tmp_path)
    assert caught.value.args[0] == own | {"sigma_data": 0.3, "centered": True, "end_time": 1e-5}
