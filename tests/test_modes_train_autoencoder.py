"""--mode=train on latents: first the codec, then the network; one file that is sampled; what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from codec_cases import config_of, write_codec, write_pictures
from PIL import Image as Pillow

import checkpoints
import run_lib
from builders import autoencoder as builder
from builders import latent_data, latent_parts
from builders.latent import load_parts
from builders.latent_parts import load_codec
from checkpoints import native
from modes import train
from modes.request import Request
from training.state import STATE_FILE


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.slow
def test_training_leaves_a_codec_with_its_quality_and_pictures_and_goes_on_bit_for_bit(pictures, tmp_path):
    config = config_of(pictures, "autoencoder")
    config.data.holdout = 4
    config.optim.schedule = "constant"  # a cosine would know its end
    for name, counts in (("killed", (1, 2)), ("whole", (2,))):
        for count in counts:
            config.training.num_steps = count
            train.run(Request(config, tmp_path / name))
    killed, whole = (tmp_path / name / "autoencoder" for name in ("killed", "whole"))
    assert (killed / STATE_FILE).read_bytes() == (whole / STATE_FILE).read_bytes()
    assert {path.name for path in whole.iterdir()} == {
        *("autoencoder.safetensors", "quality.jsonl", "step_2.png", "train_log.jsonl", STATE_FILE)
    }
    told = json.loads((whole / "quality.jsonl").read_text())
    assert told["step"] == 2 and told["judged"] == 3 and told["nats"] > 0  # every fourth of twelve
    stored = checkpoints.read(tmp_path / "whole" / builder.FILE)
    assert stored.raw == {} and stored.extra["psnr"] == told["psnr"] and stored.config["latent"]["channels"] == 2
    assert builder.create_codec(config, str(stored.path))[0] == load_codec(stored, config)[0]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A codec whose latents are means of 2 x 2 pixels, of red and green, times its parameter; log variance -1."""

    def apply(self, variables, x, method):
        if method == "decode":
            blue = jnp.zeros_like(x[..., :1])
            return jnp.repeat(jnp.repeat(jnp.concatenate([x, blue], -1) / variables["params"], 2, 1), 2, 2)
        means = x.reshape(len(x), 4, 2, 4, 2, 3).mean((2, 4))[..., :2]
        return jnp.concatenate([variables["params"] * means, jnp.full_like(means, -1.0)], -1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A work directory with a codec of random weights."""
    folder = tmp_path_factory.mktemp("W")
    write_codec(folder)
    return folder


@pytest.fixture
def latents(made, pictures, monkeypatch):
    """Of the codec above, in the place of the one in the file."""
    monkeypatch.setattr(latent_parts, "load_codec", lambda stored, config: (Blocks(), np.float32(3)))
    return latent_data.open_latents(config_of(pictures), made)


def by_hand(image):
    """The moments of `Blocks`, in NumPy."""
    means = 3 * (image / 127.5 - 1).reshape(4, 2, 4, 2, 3).mean((1, 3))[..., :2]
    return np.concatenate([means, np.full_like(means, -1)], -1)


def test_images_and_their_mirrors_are_encoded_once(made, pictures, latents, monkeypatch):
    moments = latents.batches.images
    assert moments.shape == (24, 4, 4, 4) and latents.batches.labels.tolist() == 2 * (6 * [0] + 6 * [1])
    image = np.asarray(Pillow.open(pictures / "light" / "2.png"))
    for row, seen in ((8, image), (20, image[:, ::-1])):
        np.testing.assert_allclose(moments[row], by_hand(seen), atol=1e-5)
    monkeypatch.setattr(latent_data, "_encode", None)
    again = latent_data.open_latents(config_of(pictures), made)
    np.testing.assert_array_equal(again.batches.images, moments)


def test_a_network_that_is_half_trained_keeps_its_latents(made, pictures, latents, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / STATE_FILE).write_text("")
    config = config_of(pictures)
    config.data.holdout = 2
    with pytest.raises(ValueError, match=f"{STATE_FILE} is of a network on latents of other images or of another"):
        latent_data.open_latents(config, tmp_path)


def test_what_comes_back_is_decoded_from_the_means():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    found, nats = builder.reconstructions(Blocks(), np.float32(3), image[None])
    means = by_hand(image)[..., :2]
    np.testing.assert_allclose(found[0, ::2, ::2, :2], means / 3, atol=1e-5)
    np.testing.assert_allclose(nats, [(means**2 + np.exp(-1)).sum() / 2], rtol=1e-5)  # (m^2 + v - 1 + 1)/2


def test_what_diffusion_sees_is_drawn_and_has_unit_deviation(latents):
    moments = jnp.asarray(latents.batches.images)
    keys = jax.random.split(jax.random.key(0), 24)
    found = latents.draw(moments, keys)
    np.testing.assert_allclose(found.std(), 1, rtol=0.1)
    assert latents.codec.scale_factor == 1 / latent_data.standard_deviation(latents.batches.images, 2)
    # Neither of the two keys that the loss splits an image's into draws its latent.
    own = jax.random.fold_in(keys[5], latent_data.DRAW)
    assert not any((jax.random.key_data(own) == jax.random.key_data(key)).all() for key in jax.random.split(keys[5]))
    noise = jax.random.normal(own, (4, 4, 2), moments.dtype)
    expected = latents.config.latent.scale_factor * (moments[5, ..., :2] + np.exp(-0.5) * noise)
    np.testing.assert_allclose(found[5], expected, rtol=1e-5)


def test_the_deviation_is_that_of_the_drawn_latents():
    generator = np.random.default_rng(0)
    moments = generator.normal([1.0, 2.0, -1.0, 0.0], [1.0, 0.5, 0.3, 0.3], (200, 8, 8, 4))
    drawn = moments[..., :2] + np.exp(moments[..., 2:] / 2) * generator.normal(size=(200, 8, 8, 2))
    np.testing.assert_allclose(latent_data.standard_deviation(moments, 2), drawn.std(), rtol=0.01)


def test_a_codec_without_a_spread_gives_its_latents_as_they_are(latents):
    points = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
    found = latents.draw(jnp.asarray(points), jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(found, points * latents.codec.scale_factor, rtol=1e-6)
    np.testing.assert_allclose(latent_data.standard_deviation(points, 2), points.std(), rtol=1e-5)


@pytest.mark.slow
def test_a_network_on_latents_and_its_codec_are_one_file_that_draws_images(made, pictures, tmp_path):
    shutil.copytree(made / "autoencoder", tmp_path / "autoencoder")
    train.run(Request(config_of(pictures), tmp_path))
    path = tmp_path / "checkpoints" / "model.safetensors"
    model, latents = run_lib.load(checkpoint=path), latent_data.open_latents(config_of(pictures), tmp_path)
    assert model.config.latent.scale_factor == latents.config.latent.scale_factor > 0
    z = jnp.ones((1, 4, 4, 2))
    np.testing.assert_array_equal(model.decode(z), latents.codec.decode(z))
    assert model.decode(run_lib.sample(model, {}, range(2)).images).shape == (2, 8, 8, 3)
    train.run(Request(config_of(pictures), tmp_path / "further", str(path)))  # goes on, with the codec of that file
    other = run_lib.load(config_of(""), tmp_path / "further" / "checkpoints" / "model.safetensors")
    np.testing.assert_array_equal(other.decode(z), model.decode(z))
    copy = tmp_path / "copy.safetensors"
    run_lib.MODES["convert"](Request(None, None, str(path), output=str(copy)))
    np.testing.assert_array_equal(run_lib.load(checkpoint=copy).decode(z), model.decode(z))


def test_a_codec_that_is_named_goes_before_others(tmp_path):
    config = config_of("")
    for path in ("named", "flag", builder.FILE):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    assert latent_data.find_codec(config, tmp_path) == tmp_path / builder.FILE
    assert latent_data.find_codec(config, tmp_path, str(tmp_path / "flag")) == tmp_path / "flag"
    config.latent.checkpoint = str(tmp_path / "named")
    assert latent_data.find_codec(config, tmp_path, str(tmp_path / "flag")) == tmp_path / "named"


def test_a_file_that_does_not_say_its_scale_is_refused(made):
    config, stored = config_of(""), checkpoints.read(made / builder.FILE)
    with pytest.raises(ValueError, match="scale_factor=0 takes what the weight file says, and .* says nothing"):
        load_parts(stored, config)
    said = stored._replace(config={"latent": {"scale_factor": 2.5}})
    assert load_parts(said, config)[0].scale_factor == config.latent.scale_factor == 2.5
    config.latent.scale_factor = 2.0
    assert load_parts(said, config)[0].scale_factor == 2.0


def test_a_codec_in_a_file_keeps_its_names_apart_from_the_network(tmp_path):
    inner = {"encoder": {"kernel": np.float32([[0.1, 2.0]])}}
    native.write(tmp_path / "w", {"conv": {"bias": np.ones(2, np.float32)}}, {}, half=True, parts={"vae": inner})
    stored = checkpoints.read(tmp_path / "w")
    assert set(stored.raw) == {"conv/bias"} and set(stored.extra["parts"]["vae"].tensors) == {"encoder/kernel"}
    np.testing.assert_allclose(stored.extra["parts"]["vae"].tensors["encoder/kernel"], [[0.1, 2.0]], rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "method", "error", "message"),
    [
        ({}, "", FileNotFoundError, "no codec .*autoencoder.safetensors: name one with --config.latent.checkpoint"),
        ({"latent.text.kind": "clip"}, "", ValueError, "text.kind='clip': networks on latents are trained without"),
        ({"latent.kind": "vq"}, "autoencoder", ValueError, "latent.kind='vq': the codec that is trained here is 'kl'"),
        ({"latent.kind": "none"}, "autoencoder", ValueError, "flowers64.py:autoencoder"),
        ({}, "consistency", ValueError, "training.method='consistency'.*On latents score_matching, autoencoder, ld3"),
    ],
)
def test_what_cannot_be_trained_on_latents_is_refused(pictures, tmp_path, changes, method, error, message):
    config = config_of(pictures, method)
    config.update_from_flattened_dict(changes)
    with pytest.raises(error, match=message):
        train.run(Request(config, tmp_path))
