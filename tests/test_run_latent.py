"""A published latent pipeline from the command line: a folder and prompts in, pictures out, each with its prompt."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from latent_cases import cases, config_of, tensors_of
from test_builders_latent_parts import write_pipeline

import run_lib
from benchmarks.peers.latent_goldens import drawn
from builders import text
from configs import base
from data.clip_tokens import END, START
from modes.request import Request
from reports.images import read_png

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "cat", "dog"]


def write_wider(folder):
    """The recorded U-Net looks at a context of 6 channels; this one at the 8 that the recorded text encoder gives."""
    (folder / "config.json").write_text(json.dumps(config_of("sd1", cross_attention_dim=8)))
    shapes = {name: tensor.shape for name, tensor in tensors_of("sd1").items()}
    shapes |= {
        name: (shape[0], 8)
        for name, shape in shapes.items()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    tensors = {name: drawn(name, shape) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A pipeline of tiny random networks with a tokenizer of 40 tokens, and prompts."""
    folder = tmp_path_factory.mktemp("latent")
    tokenizer = write_pipeline(folder / "pipeline") / "tokenizer"
    write_wider(folder / "pipeline" / "unet")
    pieces = ["c", "ca", "t</w>", "d", "o", "do", "g</w>", "a", *(f"{word}</w>" for word in WORDS)]
    vocab = pieces + [f"{n}</w>" for n in range(38 - len(pieces))] + [START, END]
    (tokenizer / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(vocab)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n")
    (folder / "prompts.txt").write_text("a cat\n\na dog 猫\n", encoding="utf-8")
    return folder


def request(home, workdir, **overrides):
    own = {"sampling.prompts": str(home / "prompts.txt"), "sampling.method": "unipc", "sampling.num_steps": 4}
    own |= {"sampling.microbatch": 1, "eval.num_samples": 3, **overrides}
    return Request(None, workdir, str(home / "pipeline"), overrides=own)


@pytest.mark.slow
def test_pictures_carry_their_prompts_and_the_run_its_guidance(home, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run_lib.MODES["sample"](request(home, tmp_path, **{"guidance.cfg_scale": 5.0}))
    assert "8 network calls an image" in caplog.text and "; decoding about" in caplog.text
    assert "8 px" in caplog.text  # of the image: the latent has 4
    pictures = [read_png(tmp_path / "eval" / f"image_{i}.png") for i in range(3)]
    assert [picture.text["prompt"] for picture in pictures] == ["a cat", "", "a dog 猫"]
    assert all(picture.image.shape == (8, 8, 3) for picture in pictures)
    assert len({picture.image.tobytes() for picture in pictures}) == 3
    record = json.loads((tmp_path / "eval" / "run.json").read_text())
    assert record["settings"]["guidance"]["cfg_scale"] == 5.0
    assert record["settings"]["config"]["latent"]["kind"] == "kl"
    before = pictures[1].image
    (tmp_path / "eval" / "image_1.png").unlink()
    run_lib.MODES["sample"](request(home, tmp_path, **{"guidance.cfg_scale": 5.0}))
    np.testing.assert_array_equal(read_png(tmp_path / "eval" / "image_1.png").image, before)


@pytest.mark.slow
def test_a_picture_is_drawn_again_from_itself(home, tmp_path):
    run_lib.MODES["sample"](request(home, tmp_path / "a", **{"eval.num_samples": 2}))
    path = tmp_path / "a" / "eval" / "image_1.png"
    again = Request(None, tmp_path / "b", str(home / "pipeline"), from_image=str(path))
    run_lib.MODES["sample"](again)
    np.testing.assert_array_equal(read_png(tmp_path / "b" / "eval" / "image_1.png").image, read_png(path).image)


def test_a_tokenizer_of_another_network_is_refused(home, tmp_path):
    other = tmp_path / "tokenizer"
    other.mkdir()
    tokens = {f"x{n}": n for n in range(50)} | {START: 50, END: 51}
    (other / "vocab.json").write_text(json.dumps(tokens))
    (other / "merges.txt").write_text("")
    config = run_lib.load(None, home / "pipeline").config
    config.latent.tokenizer = str(other)
    with pytest.raises(ValueError, match="52 tokens and the text network knows 40"):
        run_lib.load(config, home / "pipeline").text.contexts([""])


def test_a_converted_file_holds_the_codec_and_the_text_network_too(home, tmp_path):
    target = tmp_path / "model.safetensors"
    run_lib.MODES["convert"](Request(None, None, str(home / "pipeline"), output=str(target)))
    given, model = run_lib.load(None, home / "pipeline"), run_lib.load(None, target)
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(model.decode(latents), given.decode(latents))
    with pytest.raises(FileNotFoundError, match="config.latent.tokenizer"):
        model.text.contexts(["a cat"])
    for key, path in (("tokenizer", home / "pipeline" / "tokenizer"), ("checkpoint", home / "pipeline")):
        config = run_lib.load(None, target).config
        config.latent[key] = str(path)
        found = run_lib.load(config, target).text.contexts(["a cat"])
        np.testing.assert_array_equal(found, given.text.contexts(["a cat"]))


def test_a_clip_folder_guides_by_text_with_its_own_preparation_of_images(home, tmp_path):
    parts = {"text_config": cases()["text"]["config"], "vision_config": cases()["image"]["config"]}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "projection_dim": 6, **parts}))
    tensors = {**tensors_of("text"), **tensors_of("image"), "logit_scale": np.ones(1, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((home / "pipeline" / "tokenizer" / name).read_bytes())
    settings = base.get_config().guidance
    settings.update(kind="text", prompt="a cat", encoder=str(tmp_path), crops=1)
    prompt = text.create_prompt(settings, (8, 8, 3), (0.0, 1.0))
    assert prompt.resolution == 8 and prompt.text.shape == (1, 6)
    clip, x = text.load_clip(tmp_path, (0.0, 1.0)), np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    prepared = (x - np.array([0.48145466, 0.4578275, 0.40821073])) / np.array([0.26862954, 0.26130258, 0.27577711])
    features = np.asarray(clip.image.apply({"params": clip.image_params}, jnp.asarray(prepared, jnp.float32)).projected)
    cosine = features @ prompt.text[0] / np.linalg.norm(features, axis=1) / np.linalg.norm(prompt.text)
    np.testing.assert_allclose(prompt(jnp.asarray(x), jnp.ones(())), -(np.arccos(cosine) ** 2) / 2, rtol=1e-3)
    np.testing.assert_allclose(clip.embed_image(x), features, atol=1e-5)
    settings.prompt = "a b c d e f"
    with pytest.raises(ValueError, match="longer than the 5 tokens that CLIP reads.*'f' would be cut"):
        text.create_prompt(settings, (8, 8, 3))
