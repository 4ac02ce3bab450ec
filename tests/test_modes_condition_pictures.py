"""A guided run from the command line: pictures beside their conditions, calls counted apart, no two runs mixed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Pillow

import run_lib
from builders.model import create_network
from checkpoints import native
from configs import base as base_config
from configs import methods
from reports.images import read_png
from run_lib import Request


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A random network of 8 pixels with its config, a photograph and a mask."""
    folder = tmp_path_factory.mktemp("home")
    config = config_of()
    shape = jnp.zeros((1, 8, 8, 3)), jnp.ones((1,))
    params = jax.jit(create_network(config).init)(jax.random.key(0), *shape)["params"]
    native.write(
        folder / "model.safetensors", jax.tree.map(np.asarray, params), json.loads(config.to_json_best_effort())
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Pillow.fromarray(pixels).save(folder / "photo.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[2:5, 2:6] = 0
    Pillow.fromarray(mask).save(folder / "mask.png")
    return folder


def config_of(method=""):
    config = base_config.get_config()
    config.data.image_size = 8
    config.model.update(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), scaling="edm", scale_by_sigma=False)
    config.sampling.microbatch = 2
    return methods.apply(config, method)


def draw(home, workdir, method, overrides):
    request = Request(config_of(method), workdir, str(home / "model.safetensors"), overrides=overrides)
    run_lib.MODES["sample"](request)
    return json.loads((workdir / "eval" / "run.json").read_text())


def inpainting(home, **more):
    paths = {"guidance.image": str(home / "photo.png"), "guidance.mask": str(home / "mask.png")}
    return paths | {"sampling.num_steps": 4, "eval.num_samples": 3, "eval.compare": "ddim"} | more


def test_an_inpainting_run_shows_before_and_after_and_counts_calls_apart(home, tmp_path):
    record = draw(home, tmp_path, "inpainting", inpainting(home))
    session = record["sessions"][-1]
    # Eight half kicks, each a network call of its own with its gradient, beside four calls of the solver.
    assert (session["calls"], session["gradient_calls"]) == (12, 8)
    assert record["settings"]["guidance"]["kind"] == "inpainting" and len(record["settings"]["conditions"]) == 2
    picture = read_png(tmp_path / "eval" / "before_after.png").image
    assert picture.shape[0] > 2 * 96 and picture.shape[1] > 3 * 96
    assert (tmp_path / "eval" / "comparison.png").exists()
    photo, mask = (np.asarray(Pillow.open(home / f"{name}.png")) for name in ("photo", "mask"))
    drawn = read_png(tmp_path / "eval" / "image_1.png").image
    assert np.abs(drawn.astype(int) - photo)[mask > 0].mean() < 8
    # A photograph with other pixels under the same name is another run.
    Pillow.fromarray(255 - photo).save(home / "photo.png")
    with pytest.raises(ValueError, match="holds a run with other settings: .*photo.png"):
        draw(home, tmp_path, "inpainting", inpainting(home))


def test_a_start_image_is_shown_beside_what_became_of_it(home, tmp_path):
    start = {"sampling.start_image": str(home / "photo.png"), "sampling.start_sigma": 0.2}
    draw(home, tmp_path, "unipc", start | {"sampling.num_steps": 4, "eval.num_samples": 2})
    assert (tmp_path / "eval" / "before_after.png").exists()
    assert not (tmp_path / "eval" / "by_class.png").exists()
