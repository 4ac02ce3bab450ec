"""The probability flow from the config: exact images and latents of the analytic model, counted and reproducible."""

import copy
import json

import numpy as np
import pytest
from PIL import Image as Pillow

import run_lib
import sde_lib
from builders.grids import prior_scale
from configs import own
from reports.images import read_png
from run_lib import Model, Request

MEAN, STD = 0.45, 0.2
SHAPE = (8, 8, 3)


def network(params, x, labels):
    """The exact denoiser of data N(MEAN, STD^2 I)."""
    return MEAN + (x - MEAN) * (STD**2 / (STD**2 + labels**2))[:, None, None, None]


@pytest.fixture(scope="module")
def model():
    made = Model.from_function(network, None, sde_lib.VESDE(), "x0", "sigma", (0, 1), SHAPE)
    made.config.sampling.update(method="ode", microbatch=2)
    return made


@pytest.fixture(scope="module")
def drawn(model):
    return run_lib.sample(model, seeds=range(3))


def test_the_flow_draws_the_exact_images_of_the_noise_that_other_methods_start_from(model, drawn):
    heun = run_lib.sample(model, {"method": "heun", "num_steps": 60}, range(3))
    np.testing.assert_allclose(drawn.images, heun.images, atol=4e-3)
    assert drawn.calls.shape == (3,) and drawn.nfe == drawn.calls.max() < 200


def test_an_image_is_the_same_however_the_list_is_cut(model, drawn):
    alone = run_lib.sample(model, seeds=[2])
    np.testing.assert_array_equal(alone.images[0], drawn.images[2])
    assert alone.calls[0] == drawn.calls[2]


def test_a_looser_tolerance_costs_less_and_a_solver_of_lower_order_more(model, drawn):
    loose = run_lib.sample(model, {"ode": {"solver": "dopri5", "rtol": 1e-2, "atol": 1e-2}}, range(2))
    assert loose.nfe < 0.7 * drawn.nfe
    bosh = run_lib.sample(model, {"ode": {"solver": "bosh3", "rtol": 1e-5, "atol": 1e-5}}, range(2))
    assert bosh.nfe > drawn.nfe


def test_images_come_back_from_their_latents(model):
    images = np.random.default_rng(0).normal(MEAN, STD, (3, *SHAPE)).astype(np.float32)
    latents, calls = run_lib.encode(model, images)
    # The exact flow: a scaling about the mean, from the last noise scale to the first.
    exact = (MEAN + (images - MEAN) * np.sqrt((STD**2 + 50**2) / (STD**2 + 0.01**2))) / 50
    np.testing.assert_allclose(latents, exact, atol=1e-3)
    assert calls.shape == (3,) and calls.min() > 20
    again, _ = run_lib.decode(model, latents)
    assert np.abs(again - images).max() < 1e-3


def test_latents_are_in_units_of_the_prior_for_a_process_that_shrinks_its_data(model):
    vp = Model.from_function(network, None, sde_lib.VPSDE(), "x0", "t", (-1, 1), SHAPE)
    s_max = float(vp.sde.noise_scale(np.float64(1.0)))
    grid = run_lib.create_sampler(vp, vp.config)  # heun: the same prior
    scale = prior_scale(vp.sde, type("Grid", (), {"s": np.array([s_max])}))
    assert grid.nfe > 0 and abs(scale - 1 / float(vp.sde.alpha(np.float64(1.0)))) < 1e-6 * scale


def test_images_or_labels_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"images have shape \(8, 8, 3\), these \(2, 4, 4, 3\)"):
        run_lib.encode(model, np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="one label an image"):
        run_lib.encode(model, np.zeros((2, *SHAPE)), labels=[1, 2])


def test_guidance_is_refused(model):
    config = copy.deepcopy(model.config)
    config.guidance.kind = "colorization"
    with pytest.raises(ValueError, match=r"--method=ode takes no guidance.*colorization"):
        run_lib.create_sampler(model, config)


# --- The command line ---

FACTORY = f"""
import run_lib
import sde_lib


def network(params, x, labels):
    s = labels[:, None, None, None]
    return {MEAN} + (x - {MEAN}) * ({STD}**2 / ({STD}**2 + s**2))


def make_model():
    return run_lib.Model.from_function(network, None, sde_lib.VESDE(), "x0", "sigma", (0, 1), {SHAPE})
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "net.py").write_text(FACTORY)
    config = own.get_config("ode")
    config.model.factory = f"{tmp_path / 'net.py'}:make_model"
    config.sampling.microbatch = 2
    config.eval.num_samples = 3
    return config


def test_encode_and_ode_of_the_command_line_give_the_picture_back(config, tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(60, 170, (3, *SHAPE)).astype(np.uint8)
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(pixels):
        Pillow.fromarray(image).save(tmp_path / "mine" / f"{i}.png")
    encoding = copy.deepcopy(config)
    encoding.sampling.start_image = str(tmp_path / "mine")
    run_lib.MODES["encode"](Request(encoding, tmp_path))
    assert (tmp_path / "encode" / "round_trip.png").exists()
    with np.load(tmp_path / "encode" / "latents.npz") as stored:
        assert stored["arr_0"].shape == (3, *SHAPE)
    config.sampling.latents = str(tmp_path / "encode" / "latents.npz")
    run_lib.MODES["sample"](Request(config, tmp_path))
    for i, image in enumerate(pixels):
        again = read_png(tmp_path / "eval" / f"image_{i}.png")
        # The last jump denoises a sigma of 0.01: a quarter of a percent of the distance to the mean.
        assert np.abs(again.image.astype(int) - image).max() <= 1
    record = json.loads((tmp_path / "eval" / "run.json").read_text())
    assert 30 < record["sessions"][0]["calls"] < 300


def test_latents_that_are_none_are_named(config, tmp_path):
    def draw(path, method="ode"):
        config.sampling.update(latents=str(path), method=method)
        run_lib.create_sampler(run_lib.load(config), config)

    with pytest.raises(FileNotFoundError, match=r"config.sampling.latents=.*gone.npz.* --mode=encode"):
        draw(tmp_path / "gone.npz")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz is no .npz with an array arr_0"):
        draw(tmp_path / "other.npz")
    np.savez(tmp_path / "small.npz", np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"small.npz has shape \(2, 4, 4, 3\), the model draws \(8, 8, 3\)"):
        draw(tmp_path / "small.npz")
    with pytest.raises(ValueError, match="is where a deterministic flow begins"):
        draw(tmp_path / "small.npz", "pc")


def test_encoding_asks_for_an_image(config, tmp_path):
    with pytest.raises(ValueError, match="--start_image is missing"):
        run_lib.MODES["encode"](Request(config, tmp_path))


def test_inspection_of_an_own_network_says_whether_it_denoises(config, capsys):
    run_lib.MODES["inspect"](Request(config, None))
    assert "It denoises as declared" in capsys.readouterr().out
