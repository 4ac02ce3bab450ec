"""LD3 on a latent model with prompts: pairs, students and schedules under one guidance, losses behind the decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_models import model_of, write_tokenizer

from builders import ld3 as builder
from builders.draw import sample
from sampling import learned
from training import ld3, ld3_learning


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ld3")
    write_tokenizer(folder / "tokenizer")
    (folder / "prompts.txt").write_text("a cat\na dog\n\n")
    (folder / "others.txt").write_text("a dog\n")
    return folder


def task_of(home, guidance=(), **own):
    model = model_of(home / "tokenizer", {"cfg_scale": 3.0, **dict(guidance)}, prompts=str(home / "prompts.txt"))
    config = model.config
    config.sampling.update(num_steps=4, method="ld3")
    config.training.num_steps = 3
    config.ld3.update(num_train=4, num_valid=2, microbatch=2, teacher_steps=12, valid_every=1, solver="dpmpp", order=2)
    config.ld3.update(start="time_uniform", optimizer="gauss_newton")
    config.ld3.update(own)
    return model, config, builder.create_task(model, config)


def test_a_schedule_is_learned_with_prompts_under_guidance_and_samples_as_it_was_judged(home, tmp_path):
    model, config, task = task_of(home)
    pairs, teacher = builder.create_pairs(model, config, tmp_path / "pairs")
    assert pairs.noise.shape == (4, 4, 4, 4) and pairs.valid_indices.tolist() == [4, 5]
    before, _ = builder.distances(task, task.params, pairs, 2)
    best = ld3_learning.learn(task.problem, task.params, pairs, builder.learning_settings(config), None, tmp_path / "s")
    after, images = builder.distances(task, best, pairs, 2)
    assert after < 0.7 * before
    schedule = builder.schedule_of(task, best, model, teacher, {})
    assert schedule.guidance["cfg_scale"] == 3.0
    (tmp_path / "ld3_4.json").write_text(learned.to_json(schedule))
    config.sampling.schedule, config.seed = str(tmp_path / "ld3_4.json"), teacher["seed"]
    drawn = sample(model, {}, pairs.valid_indices.tolist())
    assert drawn.nfe == 8, "two calls a step"
    np.testing.assert_allclose(drawn.images, images(2), atol=1e-4)
    other, _ = builder.create_pairs(*task_of(home)[:2], tmp_path / "pairs")  # drawn already
    np.testing.assert_array_equal(other.targets, pairs.targets)
    for key, value in (("cfg_scale", 2.0), ("prompts", str(home / "others.txt"))):
        changed, config, _ = task_of(home)
        (config.guidance if key == "cfg_scale" else config.sampling)[key] = value
        with pytest.raises(ValueError, match=r"other conditions|guidance|settings"):
            builder.create_pairs(changed, config, tmp_path / "pairs")


def test_a_schedule_learned_under_another_scale_is_warned_of(home, tmp_path, caplog):
    model, _, task = task_of(home)
    schedule = builder.schedule_of(task, task.params, model, {}, {})
    (tmp_path / "ld3_4.json").write_text(learned.to_json(schedule))
    model.config.guidance.cfg_scale = 5.0
    sample(model, {"schedule": str(tmp_path / "ld3_4.json")}, [0])
    assert "learned under a classifier-free guidance scale of 3, this run has 5" in caplog.text


@pytest.mark.slow
def test_the_loss_behind_the_decoder_is_of_images_and_its_gradient_exact(home):
    model, _, task = task_of(home, optimizer="adam", compares="image")
    problem = task.problem.told(np.array([0, 1]), np.array([1, 0]))
    noise, target = (jax.random.normal(jax.random.key(n), (2, 4, 4, 4), jnp.float32) for n in (0, 1))
    each, gradient = ld3_learning.losses_and_gradient(problem, task.params, noise, target, jnp.arange(2))
    found = ld3_learning.run(problem, task.params, noise)
    difference = model.codec.decode(np.asarray(found)) - model.codec.decode(np.asarray(target))
    np.testing.assert_allclose(each, (difference**2).mean((1, 2, 3)), rtol=1e-4)

    def whole(params):
        objective, space, student, denoiser = problem[:4]
        return ld3.loss(objective, space, student, denoiser, params, noise, target).sum()

    expected = jax.jit(jax.grad(whole))(task.params)
    for name, leaf in gradient.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"compares": "image"}, "gradient of the decoder"),
        ({"compares": "pixels", "optimizer": "adam"}, "'image' for a latent model"),
        ({"preset": "paper", "optimizer": "adam"}, "told nothing"),
    ],
)
def test_what_cannot_be_learned_together_is_refused(home, own, message):
    with pytest.raises(ValueError, match=message):
        task_of(home, **own)
