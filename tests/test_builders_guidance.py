"""config.guidance by its keys, on Gaussian data where every posterior is known; labels and pictures by image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Pillow

import models
from builders import guidance as builder
from builders import text
from builders.conditions import Take, condition_settings, parse_labels
from builders.draw import image_keys, sample
from builders.grids import create_grid
from builders.model import Model, create_denoiser, create_network
from builders.samplers import create_sampler
from checkpoints import native
from configs import base as base_config
from models.denoiser import Denoiser
from sampling import splitting
from sde_lib import VESDE

MEAN, STD = 0.4, 0.2


def network(params, x, sigma, classes=None):
    """E[x0 | y] of data N(mean, STD^2); the mean of a class is MEAN + 0.1 class."""
    s = sigma[:, None, None, None]
    mean = MEAN if classes is None else MEAN + 0.1 * classes[:, None, None, None]
    return mean + params * STD**2 / (STD**2 + s**2) * (x - mean)


def model_of(guidance=(), num_classes=0, **sampling) -> Model:
    config = base_config.get_config()
    config.data.update(image_size=8, num_classes=num_classes)
    config.sampling.update(num_steps=20, microbatch=2, method="stsp2")
    config.sampling.update(sampling)
    config.guidance.update(dict(guidance))
    return Model(Denoiser(jnp.float32(1.0), network, VESDE(0.01, 50.0), "x0", "sigma"), config)


def noise(indices) -> np.ndarray:
    return np.stack([np.asarray(jax.random.normal(key, (8, 8, 3), jnp.float32)) for key in image_keys(42, indices)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two photographs, a mask whose upper half is known, and a grey and a small version of the first photograph."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "two").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Pillow.fromarray(image).save(folder / "two" / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Pillow.fromarray(mask).save(folder / "mask.png")
    np.save(folder / "small.npy", pixels[:1].reshape(1, 2, 4, 2, 4, 3).mean((2, 4)).astype(np.float32) / 255)
    return folder


def settings_of(pictures, kind, **changes):
    image = "small.npy" if kind == "super_resolution" else "two"
    mask = {"mask": str(pictures / "mask.png")} if kind == "inpainting" else {}
    return {"kind": kind, "image": str(pictures / image)} | mask | changes


def observe(kind, x):
    if kind == "inpainting":
        return x[:, :4]
    if kind == "colorization":
        return x.mean(-1)
    return x.reshape(len(x), 2, 4, 2, 4, 3).mean((2, 4))


@pytest.mark.parametrize("kind", ["inpainting", "colorization", "super_resolution"])
@pytest.mark.parametrize("likelihood", ["pigdm", "direct", "projection"])
def test_every_task_explains_what_was_given_and_each_image_its_own(pictures, kind, likelihood):
    conditional = {"direct": "flow", "pigdm": "flow", "projection": "euler"}[likelihood]
    model = model_of(settings_of(pictures, kind, likelihood=likelihood, conditional=conditional, data_std=STD))
    truth = np.stack([np.asarray(Pillow.open(pictures / "two" / f"{name}.png")) / 255 for name in "ab"])
    expected = observe(kind, truth)[:1] if kind == "super_resolution" else observe(kind, truth)
    found = sample(model, {}, range(5))  # groups of two on two devices: image i has observation i mod 2
    expected = np.stack([expected[i % len(expected)] for i in range(5)])
    # The corrected scheme ends with the network: what is known is met as well as the last noise scale allows.
    assert np.abs(observe(kind, found.images) - expected).max() < 0.02
    assert found.nfe == (20 if likelihood != "pigdm" else 60)
    assert np.isfinite(found.images).all()


def test_an_image_does_not_depend_on_the_images_drawn_beside_it(pictures):
    model = model_of(settings_of(pictures, "inpainting", likelihood="direct", conditional="flow"))
    together, alone = sample(model, {}, range(4)).images, sample(model, {}, [3]).images
    np.testing.assert_allclose(together[3], alone[0], atol=1e-6)


def test_gradients_and_network_calls_are_counted_apart(pictures):
    direct = model_of(settings_of(pictures, "inpainting", likelihood="direct"))
    assert [create_sampler(direct, direct.config)[i] for i in (4, 5)] == [20, 40]
    for method, calls, gradients in (("ltsp2", 20, 20), ("plms2", 20, 20), ("ddim", 20, 20)):
        direct.config.sampling.method = method
        sampler = create_sampler(direct, direct.config)
        assert (sampler.nfe, sampler.gradient_calls) == (calls, gradients), method


def test_a_class_conditional_network_draws_the_classes_in_turn():
    model = model_of(num_classes=5, method="ddim", num_steps=30, labels="0,4")
    means = sample(model, {}, range(5)).images.mean((1, 2, 3))
    np.testing.assert_allclose(means, MEAN + np.array([0, 0.4, 0, 0.4, 0]), atol=0.06)
    means = sample(model, {"labels": ""}, [1, 3]).images.mean((1, 2, 3))  # all classes: image i has class i mod 5
    np.testing.assert_allclose(means, MEAN + np.array([0.1, 0.3]), atol=0.06)
    found = sample(
        model, {"labels": "4", "method": "dpmpp", "grid": "gits", "gits_images": 2, "num_steps": 5}, range(2)
    )
    assert found.nfe == 5 and abs(found.images.mean() - MEAN - 0.4) < 0.06


@pytest.mark.parametrize("method", ["ddim", "heun", "unipc", "stsp2", "sa"])
def test_a_start_image_is_noised_to_start_sigma_and_denoised(pictures, method):
    start = {"start_image": str(pictures / "two"), "start_sigma": 0.5}
    model = model_of(method=method, tau=0.0, **start)
    truth = np.stack([np.asarray(Pillow.open(pictures / "two" / f"{name}.png")) / 255 for name in "aba"])
    y = truth + 0.5 * noise(range(3))
    expected = MEAN + (y - MEAN) * STD / np.sqrt(STD**2 + 0.5**2)
    error = np.abs(sample(model, {}, range(3)).images - expected).max()
    assert error < (0.06 if method == "ddim" else 0.01), error


def test_automatic_substeps_tame_a_kick_that_euler_overshoots(pictures, caplog):
    strong = settings_of(pictures, "inpainting", likelihood="direct", scale=50.0)
    model = model_of(strong, num_steps=6)
    wild = sample(model, {}, range(2))
    assert "The guidance is too strong for its steps" in caplog.text
    model.config.guidance.substeps = 0
    tame = sample(model, {}, range(2))
    assert np.abs(tame.images).max() < 3 < np.abs(wild.images).max()
    assert tame.gradient_calls > wild.gradient_calls


def test_the_scale_may_follow_the_noise(pictures):
    config = model_of(settings_of(pictures, "inpainting", scale=2.0, interval=(0.1, 10.0), shape="rising")).config
    schedule = builder.create_schedule(config, 50.0, 0.01)
    s = np.array([0.05, 0.1, 1.0, 10.0, 20.0])
    expected = 2 * np.log(s / 0.01) / np.log(5000) * [0, 1, 1, 1, 0]
    np.testing.assert_allclose(schedule(s), expected, rtol=1e-6)
    config.guidance.shape = "falling"
    np.testing.assert_allclose(builder.create_schedule(config, 50.0, 0.01)(s[2]), 2 - expected[2], rtol=1e-6)


def contrasted(monkeypatch, kind: str, other_classes: int, scale: float) -> np.ndarray:
    """How far guidance of that scale, away from a model of so many classes, moves an image of class 2 of 3."""
    monkeypatch.setattr(builder, "load", lambda config, file: model_of(num_classes=other_classes))
    sampling = dict(num_classes=3, method="ddim", num_steps=60, labels="2")
    settings = {"kind": kind, "model": "other.safetensors", "interval": (0.1, 2.0), "scale": scale}
    found = sample(model_of(settings, **sampling), {}, [0])
    assert found.gradient_calls == 0 and (found.nfe == 60) == (scale == 1)
    return (found.images - sample(model_of(**sampling), {}, [0]).images).mean()


def test_classifier_free_guidance_leads_away_from_no_class_in_proportion_to_w_less_one(monkeypatch):
    once, twice = (contrasted(monkeypatch, "classifier_free", 0, scale) for scale in (2.0, 3.0))
    assert once > 0.02 and np.isclose(twice, 2 * once, rtol=1e-3)
    assert abs(contrasted(monkeypatch, "classifier_free", 0, 1.0)) < 1e-6


def test_autoguidance_gives_both_models_the_same_class(monkeypatch):
    assert abs(contrasted(monkeypatch, "autoguidance", 3, 2.0)) < 1e-6  # here they are the same model


def test_a_contrast_needs_another_model():
    model = model_of({"kind": "autoguidance"}, method="ddim")
    with pytest.raises(ValueError, match="config.guidance.kind='autoguidance' needs config.guidance.model"):
        create_sampler(model, model.config)


CLIP = """
import jax.numpy as jnp

class make:
    resolution = 4
    def embed_image(self, images):
        return jnp.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], axis=1)
    def embed_text(self, text):
        return {"bright": [1.0, 0.0], "dark": [0.0, 1.0]}[text]

class poor:
    resolution = 4
"""


def test_a_users_encoder_pulls_images_towards_the_prompt(tmp_path):
    (tmp_path / "clip.py").write_text(CLIP)
    spec = f"{tmp_path}/clip.py:make"
    settings = {"kind": "text", "encoder": spec, "scale": 300.0, "crops": 1}
    bright, dark = (sample(model_of(settings | {"prompt": p}), {}, range(2)).images.mean() for p in ("bright", "dark"))
    assert bright > MEAN + 0.05 > MEAN - 0.05 > dark
    with pytest.raises(FileNotFoundError, match="names no function in a file; write path/my_clip.py:make_encoder"):
        text.load_encoder("clip.py")
    with pytest.raises(ValueError, match="returns an object without embed_image, embed_text"):
        text.load_encoder(f"{tmp_path}/clip.py:poor")
    with pytest.raises(ValueError, match="needs config.guidance.prompt"):
        sample(model_of(settings | {"prompt": ""}))


def test_classes_and_masks_go_together():
    model = model_of(num_classes=3, method="pds", num_steps=4, freq_mask_path="power:1.0", labels="0,2")
    drawn = sample(model, {}, range(4)).images
    np.testing.assert_allclose(drawn[[0, 2]].mean() - drawn[[1, 3]].mean(), -0.2, atol=0.1)


@pytest.mark.parametrize("kind", ["inpainting", "colorization", "super_resolution"])
@pytest.mark.parametrize("method", ["pc", "pds"])
def test_predictor_corrector_samplers_end_at_what_is_seen_of_each_image(pictures, kind, method):
    masks = {"freq_mask_path": "power:1.0"} if method == "pds" else {}
    model = model_of(settings_of(pictures, kind), method=method, num_steps=6, **masks)
    drawn = sample(model, {}, range(3))
    seen = builder.create_observation(model, model.config)
    found = np.asarray(seen.operator.apply(jnp.asarray(drawn.images)))
    assert drawn.nfe == 12 and drawn.gradient_calls == 0
    np.testing.assert_allclose(found, Take(range(3), 3)(seen.observed), atol=1e-4)
    alone = sample(model, {}, [2]).images[0]
    np.testing.assert_allclose(alone, drawn.images[2], atol=1e-5)
    assert np.abs(drawn.images[0] - drawn.images[2]).max() > 0.05, "the free part is drawn"


@pytest.mark.parametrize(
    ("guidance", "sampling", "message"),
    [
        ({"kind": "inpaint"}, {}, "config.guidance.kind='inpaint' is unknown; choose one of"),
        ({"likelihood": "exact"}, {}, "config.guidance.likelihood='exact' is unknown"),
        ({"scale": 1e39}, {}, r"config.guidance.scale=1e\+39 is not a finite float32"),
        ({"interval": (2.0, 1.0)}, {}, r"config.guidance.interval=\(2, 1\) needs 0 <= low < high"),
        ({"shape": "cosine"}, {}, "config.guidance.shape='cosine' is unknown"),
        ({"data_std": 0.0}, {}, "config.guidance.data_std=0 must be positive"),
        ({"conditional": "rk4"}, {}, "config.guidance.conditional='rk4' is unknown"),
        ({"substeps": -1}, {}, "config.guidance.substeps=-1"),
        ({"compat": "oficial"}, {}, "config.guidance.compat='oficial' is unknown"),
        ({}, {"method": "stps4"}, "--method='stps4' is unknown; choose one of .* Did you mean 'stsp4'"),
        ({"kind": "classifier"}, {"method": "pds"}, "--method=pds is stochastic and takes no guidance"),
        ({}, {"method": "sa"}, "--method=sa is stochastic and takes no guidance"),
        ({}, {"variant": "bh1"}, "config.sampling.variant does not go with config.guidance"),
        ({}, {"method": "stsp4", "num_steps": 0, "grid": "ddim999999"}, "no integer stride keeps 999999"),
        ({}, {"labels": "1"}, "--labels='1': this network is told no class"),
        ({"mask": "gone.png"}, {}, "config.guidance.mask='gone.png': there is no such file"),
        ({"image": ""}, {}, "config.guidance.image='': there is no such file"),
        ({}, {"start_image": "a.png"}, "--start_image with --method=stsp2 and --start_sigma=0"),
        ({}, {"start_sigma": 1.0}, "--start_sigma=1 noises an image; name one with --start_image"),
        ({"kind": "classifier", "classifier": ""}, {}, "config.guidance.classifier='' is no file; train"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(pictures, guidance, sampling, message):
    model = model_of(settings_of(pictures, "inpainting") | guidance, **sampling)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        create_sampler(model, model.config)


def test_every_file_and_every_scale_that_images_depend_on_is_remembered(tmp_path):
    config = model_of().config
    assert condition_settings(config) == {}
    files = {key: str(tmp_path / key) for key in ("image", "mask", "classifier", "model", "start_image", "prompts")}
    for key, file in files.items():
        (tmp_path / key).write_text(key)
        section = config.sampling if key in ("start_image", "prompts") else config.guidance
        section[key] = file
    said = condition_settings(config)
    assert set(said["conditions"]) == set(files.values()) and len(set(said["conditions"].values())) == len(files)
    (tmp_path / "model").write_text("other weights")
    assert condition_settings(config) != said
    guided = model_of({"cfg_scale": 3.0}).config
    assert condition_settings(guided)["guidance"]["cfg_scale"] == 3.0


def guide_of(pictures, kind="inpainting", **changes):
    model = model_of(settings_of(pictures, kind, **changes))
    guide = builder.create_condition(model, model.config).guide
    assert guide is not None
    return guide(model.denoiser, Take([1], 1))


def test_every_key_of_the_guidance_reaches_it(pictures, tmp_path):
    direct = guide_of(pictures, likelihood="direct", noise_std=0.3)
    pigdm = guide_of(pictures, likelihood="pigdm", noise_std=0.3, data_std=0.7)
    np.testing.assert_allclose([direct.noise_std, pigdm.noise_std, pigdm.data_std], [0.3, 0.3, 0.7], rtol=1e-6)
    np.save(tmp_path / "quarter.npy", np.full((4, 4, 3), 0.25, np.float32))
    half = guide_of(pictures, "super_resolution", likelihood="direct", image=str(tmp_path / "quarter.npy"), factor=2)
    assert half.operator.factor == 2 and half.observed.shape == (1, 4, 4, 3)


def test_the_keys_of_splitting_reach_it(pictures):
    given = dict(scale=3.0, clip=5.0, interval=(0.1, 2.0), conditional="heun", substeps=3, solver="heun")
    config = model_of(settings_of(pictures, "inpainting", **given), method="stsp2").config
    assert builder.create_schedule(config, 50.0, 0.01)[:4] == (3.0, 0.1, 2.0, 5.0)
    found = builder.create_settings(config, 20)
    assert (found.splitting, found.conditional, found.substeps, found.solver) == ("strang", "heun", 3, "heun")
    published = model_of(settings_of(pictures, "inpainting", compat="official"), method="ltsp4").config
    assert builder.create_settings(published, 10) == splitting.Settings("lie_trotter", "ipndm", 4, compat="official")


def test_a_rising_scale_is_whole_where_the_run_begins(pictures):
    """Euler's first kick from s to s' is (s - s') s w(s): w is the whole scale at the model's own largest s."""
    rising = settings_of(pictures, "inpainting", likelihood="direct", shape="rising", scale=2.0)
    model = model_of(rising, method="ltsp1")
    model = dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, sde=VESDE(0.02, 20.0)))
    s = create_grid(model, model.config, model.denoiser).s
    gain = create_sampler(model, model.config).rows.kick.gain[0]
    np.testing.assert_allclose(gain, 2.0 * s[0] * (s[0] - s[1]), rtol=1e-6)


def test_the_observed_part_comes_down_from_the_start_noise_of_its_image(pictures):
    model = model_of(settings_of(pictures, "inpainting", likelihood="projection"))
    project = builder.create_condition(model, model.config).project
    assert project is not None
    np.testing.assert_array_equal(project(Take([3], 1), image_keys(42, [3])).noise, noise([3]))


def test_labels_are_classes_in_turn():
    np.testing.assert_array_equal(parse_labels("3, 0", 5), [3, 0])
    np.testing.assert_array_equal(parse_labels("", 3), [0, 1, 2])
    for wrong in ("5", "-1", "rose", "1,,2"):
        with pytest.raises(ValueError, match=f"--labels='{wrong}': .* is no class; classes are 0 to 4"):
            parse_labels(wrong, 5)
    np.testing.assert_array_equal(Take([4, 7], 4)(np.array([10, 11, 12])), [11, 11, 11, 11])


def test_the_other_model_of_autoguidance_must_draw_the_same_images(tmp_path):
    file = tmp_path / "other.safetensors"
    native.write(file, {"a": np.zeros(2, np.float32)}, base_config.get_config().to_dict())
    model = model_of({"kind": "autoguidance", "model": str(file)})
    with pytest.raises(ValueError, match="other.safetensors"):
        create_sampler(model, model.config)


@pytest.mark.parametrize("likelihood", ["direct", pytest.param("pigdm", marks=pytest.mark.slow)])
def test_an_edm_network_under_its_scaling_is_guided(pictures, likelihood):
    """SongUNet in [-1, 1] on EDM's process, random weights: what is known is met whatever the network says."""
    config = base_config.get_config()
    config.sde.update(name="edmsde", sigma_min=0.002, sigma_max=80.0)
    config.model.update(name="song_unet", scaling="edm", scaling_label="c_noise", predicts="x0", nf=8, ch_mult=(1, 2))
    config.model.update(num_res_blocks=1, attn_resolutions=(), embedding_type="positional", dropout=0.0)
    config.model.update(progressive_input="none", resblock_type="ddpm")
    config.data.update(image_size=8, centered=True)
    config.sampling.update(num_steps=10, microbatch=2, method="stsp2")
    guidance = settings_of(pictures, "inpainting", likelihood=likelihood, conditional="flow")
    config.guidance.update(guidance)
    shapes, generator = models.param_shapes(create_network(config), (8, 8, 3)), np.random.default_rng(0)
    weights = jax.tree.map(lambda leaf: generator.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    model = Model(create_denoiser(config, weights), config)
    found = sample(model, {}, range(2))
    truth = np.stack([np.asarray(Pillow.open(pictures / "two" / f"{name}.png")) / 127.5 - 1 for name in "ab"])
    assert np.abs(found.images - truth)[:, :4].max() < 0.01
    assert np.abs(found.images - truth)[:, 4:].max() > 0.3 and np.isfinite(found.images).all()
