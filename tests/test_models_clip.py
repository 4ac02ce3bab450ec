"""CLIP's encoders against transformers' on equal weights, and the table of classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import FAST_COMPILE, config_of, drawn_image, output_of, params_of, relative_error, tensors_of

import models
from benchmarks.peers.latent_goldens import tokens
from checkpoints import latent_names
from configs import diffusers_parts
from models.clip import OLD_EOS, CLIPImage, CLIPText


def text_of(case):
    encoder = models.create_text_encoder(diffusers_parts.text_encoder(config_of(case), case))
    return encoder, params_of(models.text_shapes(encoder), latent_names.text_names(tensors_of(case)))


@pytest.mark.parametrize("case", ["text", "text_gelu"])
def test_a_text_encoder_equals_the_recorded_one(case):
    encoder, params = text_of(case)
    run = jax.jit(
        lambda p: encoder.apply({"params": p}, jnp.asarray(tokens(config_of(case)))), compiler_options=FAST_COMPILE
    )
    out = run(params)
    assert relative_error(out.hidden, output_of(case, "hidden")) < 1e-5
    assert relative_error(out.pooled if out.projected is None else out.projected, output_of(case, "pooled")) < 1e-5
    # What follows a token changes nothing before it.
    changed = jnp.asarray(tokens(config_of(case))).at[:, 4:].set(1)
    later = jax.jit(lambda p: encoder.apply({"params": p}, changed), compiler_options=FAST_COMPILE)(params)
    np.testing.assert_allclose(later.hidden[:, :4], out.hidden[:, :4], atol=1e-6)
    assert np.abs(later.hidden - out.hidden).max() > 0.1


def test_an_image_encoder_equals_the_recorded_one():
    encoder = CLIPImage(**diffusers_parts.image_encoder(config_of("image"), "image"))
    params = params_of(models.image_shapes(encoder), latent_names.image_names(tensors_of("image")))
    x = drawn_image("input.image", 2, 3, 8, 8)
    out = jax.jit(lambda p: encoder.apply({"params": p}, x), compiler_options=FAST_COMPILE)(params)
    assert relative_error(out.hidden, output_of("image", "hidden")) < 1e-5
    assert relative_error(out.projected, output_of("image", "pooled")) < 1e-5


def test_both_encoders_are_found_in_one_file():
    together = {**tensors_of("text"), **tensors_of("image"), "logit_scale": np.float32(2.0)}
    together["text_model.embeddings.position_ids"] = np.arange(7)[None]
    for names, case in ((latent_names.text_names, "text"), (latent_names.image_names, "image")):
        found, alone = names(together), names(tensors_of(case))
        assert set(found) == set(alone)
        assert all(found[name] is not None and np.array_equal(found[name], alone[name]) for name in alone)


def test_a_class_is_a_row_of_the_table():
    embedder = models.create_text_encoder({"kind": "class", "num_classes": 3, "width": 2})
    table = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    context = embedder.apply({"params": {"embedding": {"embedding": table}}}, jnp.array([2, 0]))
    np.testing.assert_array_equal(context, [[[5.0, 6.0]], [[1.0, 2.0]]])
    assert models.text_shapes(embedder)["embedding"]["embedding"].shape == (3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "bert"}, "config.latent.text.kind='bert' names no encoder; choose one of"),
        ({"act": "relu"}, "config.latent.text.act='relu' is unknown"),
        ({"num_heads": 5}, "config.latent.text.num_heads=5 does not divide config.latent.text.width=768"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        models.create_text_encoder({"kind": "clip"} | changes)


def test_an_input_of_another_size_is_refused():
    with pytest.raises(ValueError, match="A text of 8 tokens; this encoder reads 7"):
        text_of("text")[0].init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    with pytest.raises(ValueError, match="given 16 x 8 pixels; it reads 8 x 8"):
        CLIPImage(image_size=8, patch_size=4).init(jax.random.key(0), jnp.zeros((1, 16, 8, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["T5EncoderModel"]}, "of a 'T5EncoderModel'; the supported text encoders are CLIPTextModel"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06 in config.json is not supported; supported: 1e-05"),
    ],
)
def test_a_text_encoder_without_a_counterpart_is_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=f"^text: .*{message}"):
        diffusers_parts.text_encoder(config_of("text", **changes), "text")


def test_the_first_end_of_a_text_stands_for_it_whatever_tokens_are_higher():
    tokens = jnp.array([[3, 1, 2, 1, 3], [1, 3, 3, 3, 3]])
    rng = np.random.default_rng(0)
    for end, places in ((1, (1, 0)), (OLD_EOS, (0, 1))):
        encoder = CLIPText(width=4, num_layers=0, num_heads=1, vocab_size=4, max_tokens=5, eos_token_id=end)
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), models.text_shapes(encoder))
        out = encoder.apply({"params": params}, tokens)
        np.testing.assert_array_equal(out.pooled, out.hidden[jnp.arange(2), jnp.array(places)])
