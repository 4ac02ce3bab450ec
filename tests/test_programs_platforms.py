"""Every family of samplers and every training step is lowered for CPU, CUDA and TPU, without doubles or callbacks.

A step of each is exported with a network in closed form: what is looked at is the sampler's and the loss's own program.
Networks are lowered in test_programs.py.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder
from PIL import Image as Pillow
from test_programs import PLATFORMS, model_of, unfit

import run_lib
import sde_lib
from builders.draw import image_keys
from models.denoiser import Denoiser
from models.noisy_classifier import NoisyClassifier
from models.operator import Operator
from training import classifier, consistency, dsno, ld3, loop, score_matching
from training import progressive_distillation as pd
from training.state import create_state

SHAPE = (8, 8, 3)
FAMILIES = [
    {"method": "pc"},
    {"method": "pds", "speed_up": 250.0, "freq_mask_path": "power:1.0", "pds_mode": "paper"},
    {"method": "pds", "speed_up": 250.0, "freq_mask_path": "power:1.0", "pds_mode": "marginal", "skew": "hilbert_x"},
    {"method": "ddim", "threshold": "dynamic"},
    {"method": "plms4"},
    {"method": "ipndm"},
    {"method": "deis"},
    {"method": "dpmpp"},
    {"method": "unipc"},
    {"method": "euler"},
    {"method": "heun"},
    {"method": "edm"},
    {"method": "sa"},
    {"method": "restart"},
    {"method": "ode"},
    {"method": "ld3"},
]
GUIDED = [{"method": "ltsp2"}, {"method": "stsp4"}, {"method": "pc", "speed_up": 250.0}]
STUDENTS = ["distilled", "consistency"]


@pytest.fixture(autouse=True)
def single_precision():
    with jax.enable_x64(False):
        yield


def check(function, *arguments) -> None:
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS and unfit(exported.mlir_module()) == []


def check_sampler(model) -> None:
    """One step of the sampler of two images, and the image of its last state."""
    sampler = run_lib.create_sampler(model, model.config)
    sampler = sampler.of([0, 1]) if sampler.of else sampler
    operands, state = sampler.begin(image_keys(0, range(2)))
    row = jax.tree.map(lambda leaf: leaf[0].astype(np.float32) if leaf.dtype.kind == "f" else leaf[0], sampler.rows)

    def step(operands, state, row):
        state, record = sampler.step(operands, state, row)
        return state, record, sampler.image(state)

    check(step, operands, state, row)


@pytest.mark.parametrize(
    "sampling", FAMILIES, ids=lambda sampling: f"{sampling['method']}-{sampling.get('pds_mode', '')}"
)
def test_every_family_of_samplers(sampling):
    schedule = str(golden_folder("first_release") / "schedule.json")
    only_ld3 = {"schedule": schedule, "num_steps": 3} if sampling["method"] == "ld3" else {}
    check_sampler(model_of(**sampling, **only_ld3))


@pytest.mark.parametrize("sampling", GUIDED, ids=lambda sampling: sampling["method"])
def test_every_way_of_guidance(sampling, tmp_path):
    Pillow.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "image.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[2:5] = 0
    Pillow.fromarray(mask).save(tmp_path / "mask.png")
    model = model_of(**sampling)
    model.config.guidance.update(
        kind="inpainting", image=str(tmp_path / "image.png"), mask=str(tmp_path / "mask.png"), scale=1.0
    )
    check_sampler(model)


@pytest.mark.parametrize("method", STUDENTS)
def test_every_student(method):
    model = model_of(method=method, num_steps=2)
    model.config.student.update(method=method, num_steps=2, grid="50.0,1.0,0.0", s_min=0.01)
    check_sampler(model)


SDE = sde_lib.VESDE()
PARAMS = {"mean": np.linspace(0, 1, 192, dtype=np.float32).reshape(SHAPE)}
IMAGES = np.full((2, *SHAPE), 0.5, np.float32)
SCALES = np.array([1.0, 4.0], np.float32)


def denoise(params, x, s, **given):
    mean = params["mean"][None]
    return mean + (x - mean) / (1 + s[:, None, None, None] ** 2)


def student_of(params) -> Denoiser:
    return Denoiser(params, denoise, SDE, "x0", "sigma")


def of_score_matching(params, batch, keys):
    return score_matching.loss(score_matching.ScoreMatching(), student_of(params), batch["image"], keys)


def of_classifier(params, batch, keys):
    def logits(params, x, t):
        return x.mean((1, 2)) * params["mean"].mean()

    judge = NoisyClassifier(params, logits, SDE, False)
    return classifier.loss(score_matching.ScoreMatching(), judge, batch["image"], batch["label"], keys)


def of_progressive_distillation(params, batch, keys):
    return pd.loss(student_of(params), {key: batch[key] for key in ("y", "s", "target", "weight")})


def of_consistency(params, batch, keys):
    wanted = {key: batch[key] for key in ("y", "s", "y_r", "r", "weight")}
    return consistency.loss(consistency.ConsistencyLoss(s_min=0.01, s_max=50.0), student_of(params), wanted)


def of_dsno(params, batch, keys):
    def network(params, x, labels):
        return x * params["mean"].mean()

    operator = Operator(params, network, Denoiser(None, pytest.fail, SDE, "x0", "sigma"), (0.5, 0.0), sigma_data=0.5)
    return dsno.loss(dsno.OperatorLoss(), operator, batch["image"], batch["frames"])


BATCH = {
    "image": IMAGES,
    "label": np.array([0, 2], np.int32),
    "y": IMAGES,
    "s": SCALES,
    "y_r": IMAGES,
    "r": SCALES / 2,
    "target": IMAGES,
    "weight": np.ones(2, np.float32),
    "frames": np.stack([IMAGES, IMAGES], axis=1),
}


@pytest.mark.parametrize(
    "loss_fn", [of_score_matching, of_classifier, of_progressive_distillation, of_consistency, of_dsno]
)
def test_every_training_step(loss_fn):
    optimizer = loop.create_optimizer(1e-3, 0.9, 1e-8, 10, 1.0, 0.01, "cosine", 100)
    settings = loop.LoopSettings(1, batch_size=2)

    def step(state, batch, key_data):
        return loop.update_step(loss_fn, optimizer, settings, state, batch, jax.random.wrap_key_data(key_data))

    check(step, create_state(PARAMS, optimizer), BATCH, jax.random.key_data(jax.random.key(0)))


def test_the_step_that_learns_a_grid():
    space = ld3.Space(SDE, 50.0, 0.01, "lam")
    student = ld3.Student("unipc", 2)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ld3.initial(space, student, 3))
    loss = functools.partial(ld3.loss, ld3.Objective(ld3.l2, 50.0), space, student, student_of(PARAMS))
    check(lambda params, noise: jax.grad(lambda params: loss(params, noise, noise).mean())(params), params, IMAGES)
