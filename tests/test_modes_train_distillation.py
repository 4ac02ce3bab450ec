"""--mode=train for students, from a teacher's file to a file that samples itself; killed runs; what is refused."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import run_lib
from benchmarks.random_weights import random_weights
from builders import distillation
from builders.model import create_network
from checkpoints import fitting, native
from checkpoints.base import unflatten
from configs import base, methods
from configs.ve import demo
from modes import train
from modes.request import Request

SIZE = 8


def config_of(method, teacher):
    """Four steps become two and one, three updates each, on images of 8 px."""
    config = methods.apply(base.get_config(), method)
    config.data.image_size = SIZE
    config.model.update(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    config.training.update(num_steps=3, batch_size=4, log_every=1, sample_every=3, checkpoint_every=1)
    config.distill.update(teacher=str(teacher), data="teacher", start_steps=4, end_steps=1)
    config.optim.lr = 1e-3
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    config = config_of("", "")
    network = create_network(config)
    weights = random_weights(dict(fitting.shapes(models.param_shapes(network, (SIZE, SIZE, 3)))))
    native.write(path, unflatten(weights), json.loads(config.to_json_best_effort()), {})
    return path


def run(config, workdir):
    train.run(Request(config, workdir))
    return workdir


@pytest.fixture(scope="module")
def halved(teacher, tmp_path_factory):
    return run(config_of("progressive_distillation", teacher), tmp_path_factory.mktemp("pd"))


@pytest.fixture(scope="module")
def consistent(teacher, tmp_path_factory):
    return run(config_of("consistency", teacher), tmp_path_factory.mktemp("ct"))


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / distillation.ROWS).read_text().splitlines()]


def test_every_halving_leaves_a_picture_a_row_and_a_student(halved):
    assert [(row["steps"], row["calls"], row["updates"]) for row in rows_of(halved)] == [(2, 2, 3), (1, 1, 3)]
    assert all(row["student_to_teacher"] > 0 and row["ddim_to_teacher"] > 0 for row in rows_of(halved))
    assert sorted(path.name for path in (halved / "pictures").iterdir()) == ["steps_1.png", "steps_2.png"]
    students = sorted((halved / "checkpoints").iterdir())
    assert [path.name for path in students] == ["student_1.safetensors", "student_2.safetensors"]
    assert [run_lib.sample(run_lib.load(checkpoint=str(path)), {}, range(2)).nfe for path in students] == [1, 2]


def test_a_students_file_says_how_it_is_sampled(halved, teacher):
    student = run_lib.load(checkpoint=str(halved / "checkpoints" / "student_1.safetensors"))
    drawn = run_lib.sample(student, {}, range(2))
    assert drawn.nfe == 1
    # One DDIM step to s = 0 is the network's own estimate.
    plain = run_lib.sample(run_lib.load(checkpoint=str(teacher)), {"method": "ddim", "num_steps": 1}, range(2))
    assert drawn.images.shape == plain.images.shape and not np.allclose(drawn.images, plain.images, atol=1e-4)
    with pytest.raises(
        ValueError, match="--steps=2: this student takes 1 steps, for it was trained at the noise scale"
    ):
        run_lib.sample(student, {"num_steps": 2}, range(2))
    with pytest.raises(ValueError, match="--method=heun: this file holds a student"):
        run_lib.sample(student, {"method": "heun"}, range(2))


def test_a_consistency_student_is_called_once_or_again_after_fresh_noise(consistent):
    assert [row["updates"] for row in rows_of(consistent)][-1] == 3
    student = run_lib.load(checkpoint=str(consistent / "checkpoints" / "consistency.safetensors"))
    once, twice = (run_lib.sample(student, {"num_steps": n}, range(2)) for n in (1, 2))
    assert (once.nfe, twice.nfe) == (1, 2)
    assert np.isfinite(twice.images).all() and not np.allclose(once.images, twice.images)
    with pytest.raises(ValueError, match="--steps=3: this student takes at most 2 steps"):
        run_lib.sample(student, {"num_steps": 3}, range(2))


@pytest.mark.slow
def test_a_run_killed_in_mid_stage_ends_in_the_same_bytes(halved, teacher, tmp_path, monkeypatch):
    batch, made = distillation.Timed.batch, []

    def killed(self, step):
        made.append(step)
        if len(made) > 4:  # in the second stage
            raise KeyboardInterrupt
        return batch(self, step)

    config = config_of("progressive_distillation", teacher)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distillation.Timed, "batch", killed)
        run(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["student_2.safetensors"]
    run(config, tmp_path)
    for name in ("checkpoints/student_1.safetensors", "checkpoints/student_2.safetensors"):
        assert (tmp_path / name).read_bytes() == (halved / name).read_bytes()
    assert [row["steps"] for row in rows_of(tmp_path)] == [2, 1]


@pytest.mark.slow
def test_a_student_that_is_told_otherwise_than_its_teacher_is_taught_at_equal_steps_first(teacher, tmp_path):
    config = config_of("progressive_distillation", teacher)
    config.distill.update(predicts="edm", start_steps=2)
    config.training.update(num_steps=1, sample_every=1)
    run(config, tmp_path)
    assert [row["steps"] for row in rows_of(tmp_path)] == [2, 1]
    student = run_lib.load(checkpoint=str(tmp_path / "checkpoints" / "student_1.safetensors"))
    assert student.config.model.scaling == "edm" and run_lib.sample(student, {}, range(1)).nfe == 1


def test_a_workdir_keeps_to_one_plan(halved, teacher):
    config = config_of("progressive_distillation", teacher)
    config.distill.grid = "logsnr"
    with pytest.raises(ValueError, match=r"begun with other settings \(distill, grid"):
        run(config, halved)


def test_what_cannot_be_distilled_is_refused(halved, teacher, tmp_path):
    config = config_of("progressive_distillation", teacher)
    config.distill.updates = (3, 3, 3)
    with pytest.raises(
        ValueError, match=r"config.distill.updates=\(3, 3, 3\) has 3 numbers for 2 stages \(2, 1 steps\)"
    ):
        run(config, tmp_path)
    student = halved / "checkpoints" / "student_1.safetensors"
    with pytest.raises(ValueError, match="The teacher is itself a student"):
        run(config_of("progressive_distillation", student), tmp_path)
    with pytest.raises(ValueError, match="The teacher is itself a student"):
        run(config_of("consistency", student), tmp_path)
    config = config_of("progressive_distillation", teacher)
    config.distill.data = "elsewhere"
    with pytest.raises(ValueError, match="config.distill.data='elsewhere' is unknown"):
        run(config, tmp_path)
    model = run_lib.load(checkpoint=str(teacher))
    with pytest.raises(ValueError, match="--method=distilled calls a student, and this file holds none; make one with"):
        run_lib.sample(model, {"method": "distilled"}, range(1))


@pytest.mark.parametrize(
    ("method", "calls", "params"), [("distilled", 4, 2_535_235), ("consistency", 2, 2_535_235), ("dsno", 1, 2_817_859)]
)
def test_the_shipped_students_say_how_they_are_sampled(method, calls, params):
    student = run_lib.load(demo.get_config(method))
    assert run_lib.create_sampler(student, student.config).nfe == calls
    assert student.num_params == params


def test_the_plan_is_shown_before_anything_is_made(teacher, tmp_path, caplog):
    for method in ("progressive_distillation", "consistency"):
        with caplog.at_level(logging.INFO, logger="absl"):
            train.run(Request(config_of(method, teacher), tmp_path / "W", dry_run=True))
    halvings, consistency = caplog.messages
    assert "steps 4 -> 2 -> 1: 2 stage(s), 6 updates of 4 images (24 images from the teacher's own paths" in halvings
    assert "3 updates of 4 images (12 images from the teacher's own paths" in consistency
    assert all("All of it: about" in message for message in caplog.messages)
    assert not (tmp_path / "W").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["progressive_distillation", "consistency"])
def test_targets_from_images_leave_out_those_that_the_teacher_fails_on(method, teacher, tmp_path, monkeypatch, caplog):
    images = np.random.default_rng(0).integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images)
    config = config_of(method, teacher)
    config.distill.update(data="images", start_steps=2)
    config.consistency.teacher_step = True
    config.data.update(source=str(tmp_path / "images.npz"), random_flip=False)

    def failing(denoiser):
        network = denoiser.network

        def fails(params, x, labels):
            return jnp.where(x[:, :1, :1, :1] > 0.5, jnp.nan, network(params, x, labels))

        return dataclasses.replace(denoiser, network=fails)

    name, position = ("create_targets", 2) if method == "progressive_distillation" else ("create_pairs", 2)
    create = getattr(distillation, name)

    def create_failing(*args):
        model = dataclasses.replace(args[position], denoiser=failing(args[position].denoiser))
        return create(*args[:position], model, *args[position + 1 :])

    monkeypatch.setattr(distillation, name, create_failing)
    with caplog.at_level(logging.WARNING, logger="absl"):
        run(config, tmp_path / "W")
    (left_out,) = (int(word) for word in caplog.text.split("images were left out")[0].split()[-1:])
    assert 0 < left_out < 12
    (file,) = (tmp_path / "W" / "checkpoints").iterdir()
    student = run_lib.load(checkpoint=str(file))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(student.denoiser.params))
    log = next((tmp_path / "W").rglob("train_log.jsonl"))
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert np.isfinite(losses).all() and len(losses) == 3
