"""A latent model in the engine: samplers see latents, users images; prompts, classes, guidance, refusals."""

import base64
import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder
from latent_models import SD, decode, encode, model_of, network, noise, read, write_tokenizer
from PIL import Image as Pillow

from benchmarks.peers import guided_latents
from builders import classifier_free, exported, likelihood
from builders.conditions import Take, parse_labels
from builders.draw import image_keys, sample, to_pixels
from builders.prompts import Contexts, read_prompts
from builders.samplers import class_labels, create_sampler, network_conditions
from models.denoiser import Denoiser
from modes import masks, train
from modes.estimate import estimate
from modes.request import Request
from sampling.time_grids import explicit


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tokenizer, prompts, a picture of 2 x 2 blocks and a mask."""
    folder = tmp_path_factory.mktemp("latent")
    write_tokenizer(folder / "tokenizer")
    (folder / "prompts.txt").write_text("a cat\n\nein Hund für 猫\n", encoding="utf-8")
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    Pillow.fromarray(blocks).save(folder / "picture.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[5:, 3:] = 0  # cuts through blocks
    Pillow.fromarray(mask).save(folder / "mask.png")
    return folder


@pytest.fixture
def model(home):
    return model_of(home / "tokenizer", prompts=str(home / "prompts.txt"))


def contexts_of(model, prompts) -> np.ndarray:
    return np.concatenate([model.text.contexts([prompt]) for prompt in prompts])


def ddim(model, prompts, scale, negative="", steps=6):
    """The published update in float64 with a network that is called twice: x' = a' x0 + s' eps."""
    grid = create_sampler(model, model.config).rows
    s = np.append(np.asarray(grid.s_model), 0.0)
    x_context, null = (contexts_of(model, texts) for texts in (prompts, [negative] * len(prompts)))
    y = noise(image_keys(42, range(len(prompts)))).astype(np.float64) / float(SD.alpha(np.float64(1.0)))
    for a, b in zip(s[:-1], s[1:], strict=True):
        t, x = SD.time(a), y / np.sqrt(1 + a**2)
        label = jnp.full(len(prompts), 999 * t)
        cond, uncond = (np.asarray(network(0.7, x, label, c), np.float64) for c in (x_context, null))
        y = y + (b - a) * (uncond + scale * (cond - uncond))
    return y


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_prompts_guide_the_latents_by_the_published_update(home, model, scale):
    model.config.guidance.cfg_scale = scale
    found = sample(model, {}, range(4))
    prompts = ["a cat", "", "ein Hund für 猫", "a cat"]
    np.testing.assert_allclose(found.images, ddim(model, prompts, scale), atol=1e-4)
    assert found.nfe == (12 if scale == 4.0 else 6)
    assert found.images.shape == (4, 4, 4, 4)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(model):
    model.config.guidance.cfg_scale = 4.0
    model.config.sampling.negative_prompt = "dog"
    found = sample(model, {}, range(2)).images
    np.testing.assert_allclose(found, ddim(model, ["a cat", ""], 4.0, "dog"), atol=1e-4)
    assert np.abs(found - ddim(model, ["a cat", ""], 4.0)).max() > 0.05


def test_a_network_of_velocities_is_guided_alike(home):
    model = model_of(home / "tokenizer", {"cfg_scale": 3.0}, predicts="v", prompts=str(home / "prompts.txt"))
    drawn = sample(model, {"num_steps": 1, "grid": "2.0,0.0"}, range(2)).images
    y = noise(image_keys(42, range(2))).astype(np.float64) / float(SD.alpha(np.float64(1.0)))
    y *= 2.0 / float(SD.noise_scale(np.float64(1.0)))
    alpha, sigma = 1 / np.sqrt(5), 2 / np.sqrt(5)
    label = jnp.full(2, 999 * SD.time(np.float64(2.0)))
    v = [np.asarray(network(0.7, alpha * y, label, contexts_of(model, texts))) for texts in (["", ""], ["a cat", ""])]
    np.testing.assert_allclose(drawn, alpha * alpha * y - sigma * (v[0] + 3.0 * (v[1] - v[0])), atol=1e-4)


def test_pixels_are_decoded_latents_and_everything_in_between_sees_latents(model):
    assert model.shape == (4, 4, 4) and model.image_shape == (8, 8, 3)
    drawn = sample(model, {}, range(2)).images
    expected = np.asarray(decode(1.5, jnp.asarray(drawn) / 0.5))
    np.testing.assert_allclose(model.decode(drawn), expected, rtol=1e-5, atol=1e-6)
    pixels = to_pixels(model, drawn)
    assert pixels.shape == (2, 8, 8, 3) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.clip((expected + 1) / 2 * 255 + 0.5, 0, 255).astype(np.uint8))
    images = np.asarray(decode(1.5, jnp.ones((1, 4, 4, 4))))
    np.testing.assert_allclose(model.encode(images), 0.5 * encode(1.5, images), rtol=1e-6)
    np.testing.assert_allclose(model.decode(model.encode(images)), images, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        pytest.param("pds", {"freq_mask_path": "power:2.0", "num_steps": 10}, marks=pytest.mark.slow),
        pytest.param("sa", {}, marks=pytest.mark.slow),
        ("stsp2", {}),
        ("unipc", {}),
        ("gs", {}),
    ],
)
def test_every_kind_of_sampler_draws_guided_latents(home, method, own, tmp_path):
    if method == "gs":
        (tmp_path / "list.json").write_text("[14.6146, 4.0, 1.5, 0.5, 0.1, 0.0]")
        own = {"schedule": str(tmp_path / "list.json"), "num_steps": 0}
    model = model_of(home / "tokenizer", {"cfg_scale": 2.0}, method=method, prompts=str(home / "prompts.txt"), **own)
    found = sample(model, {}, range(2))
    assert found.images.shape == (2, 4, 4, 4) and np.isfinite(found.images).all()
    assert found.nfe == 2 * {"pds": 20, "stsp2": 6, "unipc": 6, "sa": 6, "gs": 5}[method]


def test_a_start_image_is_encoded_noised_and_denoised(home, model):
    model.config.sampling.update(start_image=str(home / "picture.png"), start_sigma=1.0, num_steps=1, grid="")
    found = sample(model, {}, range(2)).images
    latent = model.encode(np.asarray(Pillow.open(home / "picture.png"), np.float32)[None] / 127.5 - 1)
    y = latent + noise(image_keys(42, range(2)))
    label = jnp.full(2, 999 * SD.time(np.float64(1.0)))
    eps = np.asarray(network(0.7, y / np.sqrt(2), label, contexts_of(model, ["a cat", ""])))
    np.testing.assert_allclose(found, y - eps, atol=1e-4)
    model.config.guidance.cfg_scale = 2.0
    assert sample(model, {}, [0]).nfe == 2


@pytest.mark.slow
def test_inpainting_holds_the_latents_whose_pixels_are_all_known(home):
    settings = {"kind": "inpainting", "image": str(home / "picture.png"), "mask": str(home / "mask.png")}
    settings |= {"likelihood": "direct", "conditional": "flow", "cfg_scale": 2.0}
    model = model_of(home / "tokenizer", settings, method="stsp2", prompts=str(home / "prompts.txt"), num_steps=12)
    found = sample(model, {}, range(2))
    latent = model.encode(np.asarray(Pillow.open(home / "picture.png"), np.float32)[None] / 127.5 - 1)
    known = np.ones((4, 4), bool)
    known[2:, 1:] = False
    difference = np.abs(found.images - latent)
    assert difference[:, known].max() < 0.05 < difference[:, ~known].mean()
    white = np.zeros((8, 8), np.uint8)
    white[::2] = 255
    Pillow.fromarray(white).save(home / "stripes.png")
    model.config.guidance.mask = str(home / "stripes.png")
    with pytest.raises(ValueError, match="no block of 2 x 2 pixels.*is white throughout"):
        create_sampler(model, model.config)


@pytest.mark.slow
def test_guidance_by_a_text_encoder_sees_decoded_images(home, tmp_path):
    (tmp_path / "clip.py").write_text(
        "import jax.numpy as jnp\nclass Encoder:\n    resolution = 8\n"
        "    def embed_image(self, x):\n        assert x.shape[1:] == (8, 8, 3)\n        return x.mean((1, 2))\n"
        "    def embed_text(self, text):\n        return jnp.array([1.0, 0.0, 0.0])\n"
        "def make():\n    return Encoder()\n"
    )
    settings = {"kind": "text", "prompt": "red", "encoder": f"{tmp_path / 'clip.py'}:make", "crops": 1}
    images = {}
    for scale in (0.0, 20.0):
        own = settings | {"scale": scale, "cfg_scale": 2.0}
        model = model_of(home / "tokenizer", own, method="stsp2", prompts=str(home / "prompts.txt"))
        drawn = sample(model, {}, range(2))
        images[scale] = model.decode(drawn.images).mean((1, 2))
    red = {scale: mean[:, 0] / np.linalg.norm(mean, axis=1) for scale, mean in images.items()}
    assert (red[20.0] > red[0.0]).all()
    assert drawn.gradient_calls > 0 and drawn.nfe == 2 * (6 + drawn.gradient_calls)


def test_classes_are_read_as_context_and_the_last_one_means_none(home):
    model = model_of(None, {"cfg_scale": 2.0}, kind="class", labels="3,0")
    found = sample(model, {}, range(2)).images
    given = network_conditions(model, model.config)
    assert list(given) == ["context"]
    np.testing.assert_allclose(given["context"][[0, 1]], read(0.3, np.array([[3], [0]])), rtol=1e-6)
    null = classifier_free.null_conditions(model, model.config)["context"]
    np.testing.assert_allclose(null, read(0.3, np.array([[5]])), rtol=1e-6)
    assert class_labels(model_of(None, kind="class").config).tolist() == [0, 1, 2, 3, 4]
    assert np.isfinite(found).all()
    with pytest.raises(ValueError, match="classes are 0 to 5"):
        sample(model, {"labels": "6"}, [0])


def test_random_labels_follow_the_seed_and_leave_the_null_class_out():
    drawn = parse_labels("random", 10, seed=3, null=9)
    assert set(drawn[:1000].tolist()) == set(range(9))
    np.testing.assert_array_equal(drawn, parse_labels("random", 10, seed=3, null=9))
    assert (drawn[:100] != parse_labels("random", 10, seed=4, null=9)[:100]).any()
    assert parse_labels("uniform", 4).tolist() == parse_labels("", 4).tolist() == [0, 1, 2, 3]


def test_what_is_said_before_a_run_has_the_decoder(model):
    sampler = create_sampler(model, model.config)
    assert "; decoding about" in estimate(model, sampler, 4)


# --- diffusers' pipelines --------------------------------------------------------------------------------------------


def said_by_formula(params, x, labels, context):
    label, said = (value[:, None, None, None] for value in (labels, context.mean((1, 2))))
    return params * guided_latents.output(x, label, said, jnp)


@pytest.mark.parametrize("name", guided_latents.CASES)
def test_a_guided_latent_trajectory_ends_where_that_of_diffusers_does(home, tmp_path, name):
    golden = json.loads((golden_folder("latent") / "guided.json").read_text())[name]
    theirs = np.frombuffer(base64.b64decode(golden["x"]), "<f4").reshape(1, 4, 4, 4)
    _, settings, method, own = guided_latents.CASES[name]
    predicts = "v" if "prediction_type" in settings else "eps"
    s = SD.noise_scale(np.array(golden["timesteps"]) / 999)
    np.savez(tmp_path / "start.npz", guided_latents.start())
    model = model_of(
        home / "tokenizer",
        {"cfg_scale": guided_latents.SCALE},
        predicts=predicts,
        method=method,
        grid=",".join(repr(float(value)) for value in [*s, 0.0]),
        num_steps=0,
        latents=str(tmp_path / "start.npz"),
        prompts=str(home / "prompts.txt"),
        **own,
    )
    # The prompt is 0.4 throughout, the empty one 0.
    text = model.text._replace(apply=lambda params, ids: 0.4 * (ids[:, 1:2, None] != ids[:, 2:3, None]))
    denoiser = Denoiser(jnp.float32(1.0), said_by_formula, SD, predicts, "index")
    drawn = sample(dataclasses.replace(model, denoiser=denoiser, text=text), {}, [0])
    assert drawn.nfe == 16
    assert np.abs(drawn.images - theirs).max() < 1e-4 * max(1, np.abs(theirs).max())


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_come_from_lines_lists_objects_and_captions(home, tmp_path):
    model = model_of(home / "tokenizer")
    path = tmp_path / "captions.json"
    for content, expected in (
        (["a", ""], ["a", ""]),
        ({"1.png": "a", "2.png": "猫"}, ["a", "猫"]),
        ({"annotations": [{"id": 1, "caption": "b"}]}, ["b"]),
    ):
        path.write_text(json.dumps(content))
        model.config.sampling.prompts = str(path)
        assert read_prompts(model.config) == expected
    path = tmp_path / "lines.txt"
    for text, expected in (("a\r\n\r\nb", ["a", "", "b"]), ("\n", [""]), ("\ufeffa\n", ["a"]), (" a \n\n", ["a", ""])):
        path.write_bytes(text.encode())
        model.config.sampling.prompts = str(path)
        assert read_prompts(model.config) == expected, text


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no prompt"), (b"\xff\xfe\x00", "no UTF-8 text")],
)
def test_a_file_without_prompts_is_refused(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    model = model_of(None, prompts=str(tmp_path / "bad.txt"))
    with pytest.raises(ValueError, match=message):
        read_prompts(model.config)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning_that_says_what(home, model, caplog):
    with caplog.at_level(logging.WARNING):
        long = model.text.contexts(["cat " * 9 + "dog before the rest"])
    assert "prompt 'cat cat" in caplog.text and "10 tokens" in caplog.text and "'before the rest'" in caplog.text
    np.testing.assert_array_equal(long, model.text.contexts(["cat " * 9 + "dog"]))


def test_contexts_are_computed_for_those_asked_and_kept_for_the_group(model):
    asked = []

    class Counting(type(model.text)):
        def contexts(self, given):
            asked.extend(given)
            return super().contexts(given)

    contexts = Contexts(Counting(*model.text), ["a cat", "dog", "a cat"])
    assert Take([0, 2], 4)(contexts).shape == (4, 12, 3)
    contexts[[1, 0]]
    assert asked == ["a cat", "dog"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sampling.prompts": ""}, ValueError, "name a file of prompts.*--prompts"),
        ({"sampling.prompts": "nowhere.txt"}, FileNotFoundError, "--prompts=nowhere.txt: there is no such file"),
        ({"sampling.negative_prompt": "dog"}, ValueError, "negative_prompt.*cfg_scale"),
        ({"sampling.threshold": "static"}, ValueError, "draws latents of 4 x 4 x 4"),
        ({"guidance.kind": "colorization"}, ValueError, "sums of pixels.*not pixels"),
        ({"latent.text.kind": "class"}, ValueError, "--prompts.*reads no text"),
        ({"sampling.labels": "3"}, ValueError, "told no class"),
    ],
)
def test_what_has_no_meaning_on_latents_or_without_text_is_refused(model, changes, error, message):
    model.config.update_from_flattened_dict(changes)
    with pytest.raises(error, match=message):
        create_sampler(model, model.config)


def test_a_checkpoint_without_a_tokenizer_says_where_to_get_one(home):
    model = model_of(None, prompts=str(home / "prompts.txt"))
    with pytest.raises(FileNotFoundError, match="config.latent.tokenizer=FOLDER"):
        create_sampler(model, model.config)


def test_a_published_list_of_noise_scales_runs_on_latents(home):
    ays = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]  # Align Your Steps, SD 1.5
    grid = ",".join(map(str, [*ays, 0.0]))
    model = model_of(home / "tokenizer", {"cfg_scale": 7.5}, method="dpmpp", grid=grid, num_steps=0)
    model.config.sampling.prompts = str(home / "prompts.txt")
    sampler = create_sampler(model, model.config)
    assert sampler.nfe == 2 * explicit([*ays, 0.0]).num_steps


def changed(config, method):
    config.training.method = method
    return config


def test_masks_of_a_latent_model_are_of_latents(home, tmp_path):
    model = model_of(None, kind="none", num_steps=3)
    asked = Request(None, None, from_model=2, overrides={"sampling.method": "ddim"})
    (tmp_path / "masks").mkdir()
    masks.estimate_from_model(model, asked, tmp_path / "masks")
    unit = (sample(model, {}, range(2)).images.astype(np.float64) + 1) / 2
    space, freq = (np.load(tmp_path / "masks" / f"{kind}.npy") for kind in ("space", "freq"))
    np.testing.assert_allclose(np.moveaxis(space, 0, -1), (unit**2).mean(0), rtol=1e-5)
    zero = np.log1p((unit.sum((1, 2)) ** 2).mean(0))
    np.testing.assert_allclose(freq[:, 0, 0], zero, rtol=1e-5)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda model: likelihood.check(model.config, "index"), "--mode=likelihood.*not pixels"),
        (lambda model: train.run(Request(changed(model.config, "dsno"), None)), "training.method='dsno'.*latents.*ld3"),
    ],
)
def test_modes_of_pixels_are_refused_with_what_to_do_instead(refused, message):
    with pytest.raises(ValueError, match=message):
        refused(model_of(None, kind="none"))


@pytest.mark.slow
def test_an_exported_program_returns_decoded_images():
    model = model_of(None, kind="none", num_steps=3)
    sampler = create_sampler(model, model.config)
    program = exported.create_program(model, sampler, model.config)
    found = program.call(jnp.uint32(42), jnp.arange(2, dtype=jnp.uint32))
    expected = np.clip((model.decode(sample(model, {}, range(2)).images) + 1) / 2, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_likelihood_of_a_guided_model_is_refused():
    model = model_of(None, {"cfg_scale": 2.0}, kind="none")
    model.config.latent.kind = "none"
    with pytest.raises(ValueError, match="cfg_scale=2 changes the flow"):
        likelihood.check(model.config, "index")


def test_a_network_that_knows_no_condition_is_not_guided():
    model = model_of(None, {"cfg_scale": 2.0}, kind="none")
    with pytest.raises(ValueError, match="no class that means none"):
        create_sampler(model, model.config)
