"""Every mode of the command line runs on a network of one's own, and keeps its shape, range and process."""

import json
import os

import numpy as np
import pytest

import run_lib
from configs import own
from run_lib import Request

pytestmark = pytest.mark.slow

SOURCE = """
import jax.numpy as jnp
import run_lib, sde_lib

def network(params, x, labels):
    t = labels[:, None, None, None]
    alpha, sigma = SDE.alpha(t), SDE.sigma(t)
    variance = alpha**2 * params["std"] ** 2 + sigma**2
    return -sigma * (alpha * params["mean"] - x) / variance

SDE = sde_lib.VPSDE()

def make_model():
    params = {"mean": jnp.full((), 0.2), "std": jnp.full((), 0.4)}
    return run_lib.Model.from_function(network, params, SDE, "eps", "t", (-1, 1), (8, 8, 1))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    (made / "net.py").write_text(SOURCE)
    pixels = np.random.default_rng(0).normal(0.2, 0.4, (256, 8, 8, 1))
    np.savez(made / "images.npz", arr_0=np.uint8(np.clip(127.5 * (pixels + 1), 0, 255)))
    return made


def run(folder, mode, workdir="work", method="", overrides=None, **request):
    config = own.get_config(method)
    config.model.factory = f"{folder / 'net.py'}:make_model"
    config.sampling.update(num_steps=4)
    config.eval.update(num_samples=4, batch_size=4, compare="")
    config.training.update(num_steps=2, batch_size=4, microbatch=0, sample_every=2)
    work = folder / workdir
    run_lib.MODES[mode](Request(config=config, workdir=work, overrides=overrides or {}, **request))
    return work


def images(folder):
    return {"data.source": str(folder / "images.npz")}


def test_training_goes_on_from_the_networks_own_parameters(folder):
    work = run(folder, "train", "train", overrides=images(folder) | {"optim.lr": 0.0})
    config = own.get_config()
    config.model.factory = f"{folder / 'net.py'}:make_model"
    trained = run_lib.load(config, work / "checkpoints" / "model.safetensors")
    assert float(trained.denoiser.params["mean"]) == pytest.approx(0.2, abs=1e-3)  # stored in half precision
    assert trained.data_range == (-1.0, 1.0) and (work / "samples" / "step_2.png").exists()


@pytest.mark.parametrize("method", ["progressive_distillation", "consistency"])
def test_students_are_made_of_it(folder, method):
    changes = {"distill.start_steps": 4, "distill.end_steps": 2, "distill.data": "teacher"}
    work = run(folder, "train", method, method, changes)
    assert list((work / "checkpoints").glob("*.safetensors"))


def test_a_schedule_is_learned_for_it_and_sampled(folder):
    changes = {
        "ld3.num_train": 4,
        "ld3.microbatch": 2,
        "ld3.num_valid": 2,
        "ld3.teacher_steps": 8,
        "ld3.valid_every": 1,
    }
    work = run(folder, "train", "ld3", "ld3", changes)
    assert list(work.rglob("*.json"))


def test_images_pairs_latents_masks_and_programs_are_drawn_with_it(folder):
    run(folder, "sample", "sample")
    with np.load(folder / "sample" / "eval" / "samples_0.npz") as stored:
        assert stored["arr_0"].shape == (4, 8, 8, 1)
    record = json.loads((folder / "sample" / "eval" / "run.json").read_text())
    assert record["settings"]["config"]["data"]["image_size"] == 8
    assert list(run(folder, "pairs", "pairs").rglob("*.npy"))
    assert list(run(folder, "masks", "masks", overrides=images(folder)).rglob("*.npy"))
    pictures = {"sampling.start_image": str(folder / "images.npz")}
    assert list(run(folder, "encode", "encode", overrides=pictures).rglob("latents.npz"))
    assert list(run(folder, "export", "export").rglob("sampler.jax"))
    run(folder, "inspect")
    run(folder, "convert", output=str(folder / "own.safetensors"))
    assert os.path.getsize(folder / "own.safetensors")


def test_it_is_measured_and_swept_against_images_of_its_own_size(folder):
    pictures = images(folder) | {"eval.num_samples": 16}
    run(folder, "sample", "measured", overrides=pictures)
    run(folder, "evaluate", "measured", overrides=pictures)
    assert json.loads((folder / "measured" / "results.jsonl").read_text())["n"] == 16
    run(folder, "sweep", "swept", overrides=pictures, sweep=("method=unipc,ddim",))
    rows = (folder / "swept" / "results.jsonl").read_text().splitlines()
    assert [json.loads(row)["point"] for row in rows] == ["method=unipc", "method=ddim"]
