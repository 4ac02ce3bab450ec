"""Networks of one's own: every convention means the same denoiser, and a recorded one is sampled as its program did."""

import copy
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_writers import tensor, write_zip
from golden_files import golden_folder

import run_lib
import sde_lib
from builders import own_model
from builders.conditions import to_range
from builders.training import create_batches, data_source
from checkpoints import native
from configs import own
from data import create_source
from run_lib import Model, Request
from sampling import base

ROOT = Path(__file__).parent.parent
MEAN, STD = 0.2, 0.4
SHAPE = (4, 4, 3)

PROCESSES = {
    "ve": sde_lib.VESDE(),
    "vp": sde_lib.VPSDE(),
    "subvp": sde_lib.SubVPSDE(),
    "cosine": sde_lib.CosineVPSDE(),
    "edm": sde_lib.EDMSDE(),
    "discrete": sde_lib.DiscreteVPSDE(),
}


def from_labels(sde, told, labels):
    """SDE time of what a network is told: written apart from `Denoiser.labels`."""
    if told == "t":
        return labels
    if told == "sigma":
        return sde.time(labels)
    if told == "log_sigma":
        return sde.time(jnp.exp(labels))
    return labels / (sde.num_scales - 1)


def gaussian_model(sde, predicts, told, data_range=(-1, 1), shape=SHAPE):
    """The exact network for data N(MEAN, STD^2 I), in one of the conventions."""

    def network(params, x, labels):
        t = from_labels(sde, told, labels)[:, None, None, None]
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        variance = alpha**2 * params["std"] ** 2 + sigma**2
        score = (alpha * params["mean"] - x) / variance
        x0 = (x + sigma**2 * score) / alpha
        eps = -sigma * score
        return {"score": score, "eps": eps, "x0": x0, "denoised": x0, "v": alpha * eps - sigma * x0}[predicts]

    params = {"mean": jnp.float32(MEAN), "std": jnp.float32(STD)}
    return Model.from_function(network, params, sde, predicts, told, data_range, shape)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("predicts", "told"),
    [("score", "sigma"), ("eps", "t"), ("x0", "log_sigma"), ("v", "t"), ("denoised", "sigma"), ("eps", "log_sigma")],
)
def test_every_convention_is_the_same_denoiser_and_the_same_score(name, predicts, told):
    sde = PROCESSES[name]
    model = gaussian_model(sde, predicts, told)
    s = jnp.array([0.05, 0.7, 11.0])
    y = MEAN + jax.random.normal(jax.random.key(0), (3, *SHAPE)) * jnp.sqrt(STD**2 + s**2)[:, None, None, None]
    exact = MEAN + (y - MEAN) * (STD**2 / (STD**2 + s**2))[:, None, None, None]
    np.testing.assert_allclose(model.denoise(y, s), exact, rtol=2e-4, atol=2e-4)
    t = sde.time(s)
    alpha, sigma = sde.alpha(t)[:, None, None, None], sde.sigma(t)[:, None, None, None]
    score = (alpha * MEAN - alpha * y) / (alpha**2 * STD**2 + sigma**2)
    np.testing.assert_allclose(model.score(alpha * y, t), score, rtol=2e-3, atol=2e-3)


def test_a_label_is_the_index_of_a_level():
    discrete = gaussian_model(PROCESSES["discrete"], "eps", "label")
    levels = jnp.array([0, 137, 999])
    np.testing.assert_array_equal(discrete.denoiser.labels(levels / 999), levels)
    ve = gaussian_model(PROCESSES["ve"], "score", "label")
    np.testing.assert_array_equal(ve.denoiser.labels(jnp.array([1.0, 0.0])), [0, 999])  # 0 is the largest sigma
    vp = gaussian_model(PROCESSES["vp"], "eps", "label")
    np.testing.assert_allclose(vp.denoiser.labels(jnp.array([0.25])), [249.75])
    with pytest.raises(ValueError, match=r"told='label'.*CosineVPSDE has none.*DiscreteVPSDE"):
        gaussian_model(PROCESSES["cosine"], "eps", "label")


@pytest.mark.parametrize(("method", "tolerance"), [("heun", 0.03), ("pc", 0.06), ("unipc", 0.03)])
def test_methods_draw_the_data_of_an_own_model(method, tolerance):
    """The mean and the standard deviation of the data, in a range that is neither [0, 1] nor [-1, 1]."""
    model = gaussian_model(PROCESSES["vp"], "v", "t", data_range=(-0.5, 1.5), shape=(8, 8, 3))
    sampling = {"method": method, "num_steps": 20 if method != "pc" else 100, "microbatch": 32}
    drawn = run_lib.sample(model, sampling, range(64))
    assert abs(drawn.images.mean() - MEAN) < tolerance and abs(drawn.images.std() - STD) < tolerance
    pixels = run_lib.to_pixels(model, np.array([-0.5, 0.5, 1.5, 9.0], np.float32).reshape(1, 1, 4, 1))
    np.testing.assert_array_equal(pixels.ravel(), [0, 128, 255, 255])


def test_as_k_diffusion_is_the_denoiser_for_any_process():
    model = gaussian_model(PROCESSES["cosine"], "v", "log_sigma")
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    denoised = run_lib.as_k_diffusion(model)
    for sigma in (jnp.array([0.3, 2.0]), jnp.float32(2.0)):
        s = jnp.broadcast_to(sigma, 2)[:, None, None, None]
        expected = MEAN + (x - MEAN) * STD**2 / (STD**2 + s**2)
        np.testing.assert_allclose(denoised(x, sigma), expected, rtol=1e-4, atol=1e-4)


# --- A third party's network, recorded ---


@pytest.fixture(scope="module")
def mnist():
    with np.load(golden_folder("mnist_ddpm") / "recorded.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def mnist_factory(tmp_path_factory) -> str:
    """my_net.py: plays the recorded network back, and refuses by NaN whatever it was not asked when recorded."""
    path = tmp_path_factory.mktemp("mnist") / "my_net.py"
    path.write_text(
        "import jax.numpy as jnp\nimport numpy as np\nimport run_lib\nimport sde_lib\n\n\n"
        "def network(params, x, labels):\n"
        "    index = jnp.argmin(jnp.abs(params['t'][None] - 1000 * labels[:, None]), axis=1)\n"
        "    known = jnp.abs(params['t'][index] - 1000 * labels) < 1e-3\n"
        "    near = jnp.max(jnp.abs(params['x'][index] - x), axis=(1, 2, 3)) < 5e-3\n"
        "    return jnp.where((known & near)[:, None, None, None], params['eps'][index], jnp.nan)\n\n\n"
        "def make_model(checkpoint):\n"
        "    stored = np.load(checkpoint)\n"
        "    params = {'t': stored['ddim_t'][:20], 'x': stored['ddim_x'][:20], 'eps': stored['ddim_eps']}\n"
        "    params = {name: value.astype(np.float32) for name, value in params.items()}\n"
        "    sde = sde_lib.DiscreteVPSDE('linear', 1001 * 1e-4, 1001 * 0.02, num_scales=1001)\n"
        "    return run_lib.Model.from_function(network, params, sde, 'eps', 't', (-0.5, 0.5), (28, 28, 1))\n"
    )
    return f"{path}:make_model"


@pytest.fixture(scope="module")
def recorded(mnist_factory):
    config = own.get_config()
    config.model.factory = mnist_factory
    return run_lib.load(config, golden_folder("mnist_ddpm") / "recorded.npz")


def test_a_factory_makes_the_model_with_the_facts_of_its_file(recorded):
    config = recorded.config
    assert recorded.shape == (28, 28, 1) and recorded.data_range == (-0.5, 0.5)
    assert config.sde.name == "discretevpsde" and config.sde.num_scales == 1001
    assert config.model.predicts == "eps" and len(recorded.weights_hash) == 64


def test_the_process_of_the_recorded_network_has_its_alpha_bar(recorded, mnist):
    alpha = recorded.sde.alpha(mnist["alpha_bar_t"] / 1000)
    np.testing.assert_allclose(alpha**2, mnist["alpha_bar"], rtol=2e-5, atol=3e-7)


def test_the_recorded_network_is_told_its_time_and_its_noise_becomes_a_score_and_an_image(mnist):
    def network(params, x, labels):
        return params["eps"] * (jnp.abs(labels - mnist["t_index"] / 1000) < 1e-5)[:, None, None, None]

    sde = sde_lib.DiscreteVPSDE("linear", 0.1001, 20.02, num_scales=1001)
    # Three images at once here; the check of the function asks with two.
    denoiser = own_model.create_denoiser(network, {"eps": mnist["eps"]}, sde, "eps", "t")
    t, x = jnp.asarray(mnist["t_index"] / 1000), jnp.asarray(mnist["x"])
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1001))[mnist["t_index"]][:, None, None, None]
    np.testing.assert_allclose(denoiser.score(x, t), -mnist["eps"] / np.sqrt(1 - abar), rtol=1e-5)
    x0 = (mnist["x"] - np.sqrt(1 - abar) * mnist["eps"]) / np.sqrt(abar)
    np.testing.assert_allclose(denoiser.denoise(x / np.sqrt(abar), sde.noise_scale(t)), x0, rtol=1e-4, atol=1e-4)


def test_ddim_follows_the_recorded_trajectory(recorded, mnist):
    """20 steps to the digit that the third party's program drew; the network answers where it was asked only."""
    model = copy.deepcopy(recorded)
    grid = ",".join(f"{s:.10f}" for s in model.sde.noise_scale(mnist["ddim_t"][:20] / 1000)) + ",0.0"
    sampler_config = copy.deepcopy(model.config)
    sampler_config.sampling.update(method="ddim", num_steps=0, grid=grid, microbatch=1)
    sampler = run_lib.create_sampler(model, sampler_config, record=True)
    operands, state = sampler.begin(jax.random.split(jax.random.key(0), 1))
    alpha = model.sde.alpha(np.float64(1.0))
    state = state._replace(y=jnp.asarray(mnist["ddim_first"][None] / alpha, state.y.dtype))
    state, (states, _) = base.integrate(sampler.step, operands, state, sampler.rows)
    np.testing.assert_allclose(sampler.image(state)[0], mnist["ddim_last"], atol=2e-4)
    alphas = np.append(model.sde.alpha(mnist["ddim_t"][1:20] / 1000), 1.0)[:, None, None, None]
    np.testing.assert_allclose(alphas * np.asarray(states)[:, 0], mnist["ddim_x"][1:], atol=2e-3)


# --- The file of the docs ---


@pytest.fixture(scope="module")
def documented(tmp_path_factory) -> Path:
    text = (ROOT / "docs" / "your_own_network.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) <= 40
    path = tmp_path_factory.mktemp("documented") / "my_net.py"
    path.write_text(code)
    return path


def own_config(factory, **sampling):
    config = own.get_config()
    config.model.factory = factory
    config.sampling.update(num_steps=2, microbatch=2, **sampling)
    config.eval.update(num_samples=2)
    return config


def test_the_file_of_the_docs_is_sampled_converted_and_read_back(documented, tmp_path):
    factory = f"{documented}:make_model"
    run_lib.MODES["sample"](Request(own_config(factory), tmp_path / "W"))
    assert (tmp_path / "W" / "eval" / "image_1.png").exists()
    record = json.loads((tmp_path / "W" / "eval" / "run.json").read_text())
    assert record["sessions"][0]["calls"] == 3
    output = tmp_path / "own.safetensors"
    run_lib.MODES["convert"](Request(own_config(factory), None, "", str(output)))
    with pytest.raises(ValueError, match=r"network of your own.*--config configs/own.py --config.model.factory"):
        run_lib.load(None, output)


def test_the_weights_of_a_pth_reach_the_file_of_the_docs(documented, tmp_path):
    rng = np.random.default_rng(1)
    shapes = {"time": (16, 16), "last_bias": (1,), "first": (16, 1, 5, 5), "middle": (16, 16, 5, 5)}
    tensors = {
        name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in (shapes | {"last": (1, 16, 5, 5)}).items()
    }
    path = tmp_path / "weights.pth"
    write_zip(path, {name: tensor(value, name) for name, value in tensors.items()}, tensors)
    model = run_lib.load(own_config(f"{documented}:make_model"), path)
    np.testing.assert_array_equal(model.denoiser.params["first"], tensors["first"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(model.denoiser.params["time"], tensors["time"])


NO_ARGUMENT = """
import jax.numpy as jnp
import run_lib
import sde_lib


def make_model():
    params = {"a": {"w": jnp.zeros(3)}}
    fn = lambda params, x, labels: x * params["a"]["w"][None, None, None]
    return run_lib.Model.from_function(fn, params, sde_lib.VESDE(), "score", "sigma", (0, 1), (8, 8, 3))


def make_nothing():
    return 3
"""


def test_a_function_without_a_parameter_has_its_parameters_filled_from_the_file(tmp_path):
    (tmp_path / "mine.py").write_text(NO_ARGUMENT)
    factory = f"{tmp_path / 'mine.py'}:make_model"
    output = tmp_path / "w.safetensors"
    run_lib.MODES["convert"](Request(own_config(factory), None, "", str(output)))
    native.write(output, {"a": {"w": np.arange(3.0, dtype=np.float32)}}, {"model": {"name": "own"}})
    model = run_lib.load(own_config(factory), output)
    np.testing.assert_array_equal(model.denoiser.params["a"]["w"], [0, 1, 2])
    assert model.weights_hash != run_lib.load(own_config(factory)).weights_hash
    with pytest.raises(FileNotFoundError, match="--checkpoint names .*gone"):
        run_lib.load(own_config(factory), tmp_path / "gone")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("mine.py", ValueError, r"config.model.factory='.*mine.py' must be a file and a function"),
        ("gone.py:make", FileNotFoundError, r"there is no file .*gone.py"),
        ("mine.py:other", ValueError, r"mine.py has no function other"),
        ("mine.py:make_nothing", ValueError, r"returned int; it must return what\s+run_lib.Model.from_function"),
    ],
)
def test_a_factory_that_is_none_is_named(tmp_path, spec, error, message):
    (tmp_path / "mine.py").write_text(NO_ARGUMENT)
    with pytest.raises(error, match=message):
        run_lib.load(own_config(f"{tmp_path}/{spec}"))


def identity(params, x, labels):
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicts": "noise"}, r"predicts='noise' is unknown"),
        ({"told": "time"}, r"told='time' is unknown"),
        ({"sde": "vp"}, r"sde='vp' lacks alpha, sigma.*sde_lib.VPSDE"),
        ({"data_range": (1, 0)}, r"data_range=\(1, 0\) must be \(low, high\)"),
        ({"data_range": (1,)}, r"data_range=\(1,\) must be"),
        ({"shape": (8, 4, 3)}, r"shape=\(8, 4, 3\) must be \(h, w, c\)"),
        ({"fn": lambda params, x, labels: x[..., :1]}, r"returns \(2, 8, 8, 1\) for x of shape \(2, 8, 8, 3\)"),
        ({"fn": lambda params, x, labels: np.asarray(x)}, r"does not take x.*TracerArrayConversionError"),
        ({"fn": lambda params, x: x}, r"does not take x.*TypeError.*fn\(params, x, labels\)"),
    ],
)
def test_an_argument_without_a_meaning_is_refused(change, message):
    arguments = {"fn": identity, "params": None, "sde": sde_lib.VPSDE(), "shape": (8, 8, 3)} | change
    with pytest.raises(ValueError, match=message):
        Model.from_function(**arguments)


DATA = """
import numpy as np


class Squares:
    name = "squares"

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"image": np.full((16, 16, 3), 20 * index, np.uint8), "label": index % 3}


def make_data():
    return Squares()
"""


def test_a_data_set_of_ones_own_makes_masks(tmp_path):
    (tmp_path / "my_data.py").write_text(DATA)
    config = own.get_config()
    config.data.update(factory=f"{tmp_path / 'my_data.py'}:make_data", image_size=16)
    source = create_source(data_source(config))
    assert len(source) == 12 and source[5]["label"] == 2
    run_lib.MODES["masks"](Request(config, tmp_path))
    space = np.load(tmp_path / "masks" / "space.npy")
    np.testing.assert_allclose(space, np.mean((20 * np.arange(12) / 255) ** 2), rtol=1e-5)
    config.data.factory = f"{tmp_path / 'my_data.py'}:np"
    with pytest.raises(ValueError, match="has no function np"):
        data_source(config)


def test_pictures_of_the_user_are_brought_into_the_range_of_the_model():
    config = gaussian_model(PROCESSES["vp"], "eps", "t", data_range=(-0.5, 1.5)).config
    np.testing.assert_allclose(to_range(np.array([0.0, 0.25, 1.0]), config), [-0.5, 0.0, 1.5])


def test_training_images_in_another_range_than_two_are_refused():
    config = own.get_config()
    config.data.update(source="photos", range=(0.0, 255.0))
    with pytest.raises(ValueError, match=r"the network's range is \(0.0, 255.0\): scale inside its function"):
        create_batches(config)
