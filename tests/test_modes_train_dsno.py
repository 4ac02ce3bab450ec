"""--mode=train of an operator, from a teacher's file to a file that draws an image in one pass."""

import logging

import numpy as np
import pytest
from test_modes_train_distillation import config_of as distillation_config
from test_modes_train_distillation import rows_of, run, teacher  # noqa: F401  the tiny teacher, as a fixture

import run_lib
from builders import distillation
from builders import dsno as builder
from configs.ve import demo
from data import store
from modes import train
from modes.request import Request


def config_of(path, **changes):
    """Three updates on four trajectories of three points."""
    config = distillation_config("dsno", path)
    config.training.update(num_steps=3, batch_size=2)
    config.dsno.update({"teacher_steps": 9, "num_times": 3, "num_trajectories": 5} | changes)
    config.sampling.microbatch = 8
    return config


@pytest.fixture(scope="module")
def trained(teacher, tmp_path_factory):  # noqa: F811
    return run(config_of(teacher), tmp_path_factory.mktemp("dsno"))


def test_a_run_leaves_trajectories_a_picture_a_row_and_a_student(trained):
    found = store.open_store(trained / "trajectories")
    np.testing.assert_allclose(found.spec.label_times, [4 / 9, 1 / 9, 0], atol=1e-9)
    np.testing.assert_allclose(found.spec.eval_times, [5 / 9, 2 / 9, 1 / 9], atol=1e-9)
    (row,) = rows_of(trained)
    assert (row["calls"], row["equivalents"], row["updates"]) == (1, 3, 3)
    assert list(row["unseen"]) == ["0.4444", "0.1111", "0"]
    assert [path.name for path in (trained / "pictures").iterdir()] == ["steps_1.png"]


def test_a_students_file_draws_the_last_point_of_its_trajectory_in_one_pass(trained, caplog):
    student = run_lib.load(checkpoint=str(trained / "checkpoints" / "dsno.safetensors"))
    with caplog.at_level(logging.INFO, logger="absl"):
        drawn = run_lib.sample(student, {}, range(3))
    assert drawn.nfe == 1 and "One network call an image, which is the work of 3" in caplog.text
    operator = builder.create_operator(student.denoiser, student.config)
    noise = store.start_noise(student.config.seed, range(3), student.shape)
    np.testing.assert_allclose(drawn.images, operator.trajectory(noise)[:, -1], atol=2e-4)
    with pytest.raises(ValueError, match="--steps=2: this student takes 1 steps"):
        run_lib.sample(student, {"num_steps": 2}, range(2))
    with pytest.raises(ValueError, match="--method=heun: this file holds a student"):
        run_lib.sample(student, {"method": "heun"}, range(2))


@pytest.mark.slow
def test_the_student_begins_from_the_teachers_weights_but_for_what_is_new(trained, teacher):  # noqa: F811
    model = run_lib.load(checkpoint=str(teacher))
    model.config.dsno.update(mixing="dense")
    operator, new = builder.create_student(model, builder.student_config(model, (0.5, 0.0)))
    assert {name.split("_")[0] for name in new} == {"TemporalDense", "Conv"}
    kept = set(model.denoiser.params) - {"Conv_1"}
    for name in kept & {"Conv_0", "Dense_0"}:
        np.testing.assert_array_equal(operator.params[name]["kernel"], model.denoiser.params[name]["kernel"])


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(trained, teacher, tmp_path, monkeypatch):  # noqa: F811
    batch = distillation.Timed.batch

    def killed(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return batch(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distillation.Timed, "batch", killed)
        run(config_of(teacher), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    run(config_of(teacher), tmp_path)
    name = "checkpoints/dsno.safetensors"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_the_plan_is_shown_before_anything_is_drawn(teacher, tmp_path, caplog):  # noqa: F811
    with caplog.at_level(logging.INFO, logger="absl"):
        train.run(Request(config_of(teacher), tmp_path / "W", dry_run=True))
    assert "5 trajectories of 3 points drawn by ddim (45 network calls" in caplog.text
    assert not (tmp_path / "W").exists()


def test_what_no_operator_can_learn_is_refused(trained, teacher, tmp_path):  # noqa: F811
    student = config_of(trained / "checkpoints" / "dsno.safetensors")
    student.model.update(mixing="fourier", num_times=3)
    with pytest.raises(ValueError, match="The teacher is itself a student"):
        run(student, tmp_path)
    with pytest.raises(ValueError, match="3 quadratic times do not fall on 10 steps"):
        run(config_of(teacher, teacher_steps=10), tmp_path)
    with pytest.raises(ValueError, match="config.dsno.distance='vgg' is unknown"):
        run(config_of(teacher, distance="vgg"), tmp_path)
    with pytest.raises(ValueError, match="--method=dsno calls a student, and this file holds none; make one with"):
        run_lib.sample(run_lib.load(checkpoint=str(teacher)), {"method": "dsno"}, range(1))
    other = run_lib.load(checkpoint=str(teacher))
    other = type(other)(other.denoiser, other.config, "bb")
    with pytest.raises(ValueError, match="is for weights .*, this model needs bb"):
        builder.open_trajectories(other, str(trained / "trajectories"))


def test_trajectories_that_are_there_are_learned_from_and_not_drawn(trained, teacher, tmp_path):  # noqa: F811
    folder = str(trained / "trajectories")
    with pytest.raises(ValueError, match="config.model.modes=3 is more than 3 time points have"):
        run(config_of(teacher, trajectories=folder, modes=3), tmp_path)
    assert not (tmp_path / "trajectories").exists()


def test_the_shipped_student_is_the_same_by_its_file_and_by_the_demos_config():
    own = run_lib.load(checkpoint="demo/dsno.safetensors")
    named = run_lib.load(demo.get_config("dsno"))
    for section in ("model", "student", "sde"):
        ours, theirs = (model.config[section].to_dict() for model in (own, named))
        assert {key: value for key, value in ours.items() if theirs[key] != value} == {}
    assert named.weights_hash == own.weights_hash and named.denoiser.told == own.denoiser.told == "sigma"
