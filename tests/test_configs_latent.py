"""The shipped latent models have the names and shapes of the published ones at full width; no weight is drawn."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from latent_cases import FAST_COMPILE

import models
import sde_lib
from benchmarks.peers.latent_goldens import digest
from builders.latent import image_shape
from builders.model import create_denoiser, create_network
from checkpoints import fitting
from checkpoints.base import unflatten
from configs import compvis
from models.clip import CLIPImage

# Written by `python -m benchmarks.peers.latent_goldens --published`: tensors, numbers, hash of names and shapes.
PUBLISHED = {
    "sd15": (686, 859520964, "c65917940501ed16"),
    "sd2": (686, 865910724, "1a82f89782acc822"),
    "ldm_imagenet": (688, 400920579, "a88224d3c1ebb277"),
    "sd_codec": (248, 83653863, "024e95e442c7c7c3"),
    "ldm_codec": (205, 55322782, "d8a6c45bd347ee02"),
    "sd15_text": (196, 123060480, "e7888d72df30527e"),
    "sd2_text": (372, 340387840, "0b725790beea3cc8"),
    "clip_image": (392, 303966208, "911fa8f57529e678"),
}


def config_of(name, method=""):
    return importlib.import_module(f"configs.latent.{name}").get_config(method)


@functools.cache
def unet_shapes(name):
    config = config_of(name)
    side, channels = config.data.image_size, config.data.num_channels
    return torch_shapes(models.param_shapes(create_network(config), (side, side, channels)))


def torch_shapes(expected):
    """Of our parameters, as torch would name them (but for "_" in the place of "." here and there) and lay them out."""
    found = {}
    for path, shape in fitting.shapes(expected).items():
        *parents, leaf = path.split("/")
        if leaf == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        leaf = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
        found[".".join([*parents, leaf])] = shape
    return found


def dotted(shapes):
    """The same with the dots that say which block a tensor is of."""
    words = r"((?:down|up)_blocks|resnets|attentions|transformer_blocks|encoder_layers)_(\d+)"
    again = [("mid_block_", "mid_block."), ("_resnets", ".resnets"), ("_attentions", ".attentions")]
    again += [("encoder_layers", "encoder.layers"), ("quantize_embedding", "quantize.embedding")]
    again += [("embeddings_", "embeddings."), ("mlp_fc", "mlp.fc")]
    found = {}
    for name, shape in shapes.items():
        name = re.sub(words, r"\1.\2", name)
        for ours, theirs in again:
            name = name.replace(ours, theirs)
        found[name] = shape
    return found


@pytest.mark.parametrize("name", ["sd15", pytest.param("sd2", marks=pytest.mark.slow), "ldm_imagenet"])
def test_a_denoising_network_has_the_published_names_and_shapes(name):
    assert digest(unet_shapes(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["sd15", pytest.param("sd2", marks=pytest.mark.slow), "ldm_imagenet"])
def test_the_architecture_of_a_published_file_is_read_off_its_tensors(name):
    expected = config_of(name)
    codec = dotted(torch_shapes(models.codec_shapes(models.create_codec(expected.latent.to_dict()))))
    text = dotted(torch_shapes(models.text_shapes(models.create_text_encoder(expected.latent.text.to_dict()))))
    betas = sde_lib.create_sde(**expected.sde.to_dict()).discrete_betas().astype(np.float32)
    found, assumed = compvis.translate(dotted(unet_shapes(name)), codec, text, betas, None, None)
    network = create_network(found)
    # A level without a transformer has neither heads nor depth, and () means one plain block a level.
    keys = set(network.__dataclass_fields__) - {"attention_head_dim", "parent", "name"}
    assert {key: getattr(network, key) for key in keys} == {key: getattr(create_network(expected), key) for key in keys}
    heads = [models.unet2d.per_level(config.model.attention_head_dim, 4) for config in (found, expected)]
    assert heads[0] == heads[1] and any("attention heads" in sentence for sentence in assumed)
    assert dict(found.sde) == dict(expected.sde) and found.model.predicts == expected.model.predicts
    assert models.create_codec(found.latent.to_dict()).clone(
        down_block_types=(), up_block_types=()
    ) == models.create_codec(expected.latent.to_dict() | {"vq_embed_dim": found.latent.vq_embed_dim})
    assert found.latent.scale_factor == expected.latent.scale_factor
    create = models.create_text_encoder
    assert create(found.latent.text.to_dict()) == create(expected.latent.text.to_dict())
    assert found.data.image_size == expected.data.image_size


@pytest.mark.slow
def test_a_step_of_stable_diffusion_at_full_width_runs():
    """3.4 GB of weights that repeat one block of noise, on a small latent."""
    config = config_of("sd15")
    block = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    params = {}
    for path, shape in fitting.shapes(models.param_shapes(create_network(config), (8, 8, 4))).items():
        drawn = np.resize(block, shape) / np.float32(np.sqrt(np.prod(shape[:-1])))
        params[path] = jnp.asarray(
            drawn if len(shape) > 1 else np.full(shape, float(path.endswith("scale")), np.float32)
        )
    denoiser = create_denoiser(config, unflatten(params)).given(context=jnp.ones((1, 77, 768), jnp.float32))
    x = jnp.asarray(np.resize(block, (1, 8, 8, 4)))
    denoise = jax.jit(lambda model, y: model.denoise(y, jnp.float32(5.0)), compiler_options=FAST_COMPILE)
    out = np.asarray(denoise(denoiser, x))
    assert out.shape == x.shape and np.isfinite(out).all() and out.std() > 1e-3


def test_the_base_model_of_the_second_version_is_known_by_its_training_step():
    shapes = dict(dotted(unet_shapes("sd15")))
    shapes |= {name: (shape[0], 1024) for name, shape in shapes.items() if re.search(r"attn2\.to_[kv]", name)}
    for step, predicts, side in ((875_000, "eps", 64), (140_000, "v", 96), (None, "v", 96)):
        found, _ = compvis.translate(shapes, {}, {}, None, None, step)
        assert (found.model.predicts, found.data.image_size) == (predicts, side)
        assert found.model.attention_head_dim == (5, 10, 20, 20)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["sd15", "ldm_imagenet"])
def test_a_table_of_betas_in_half_precision_is_known(name, dtype):
    sde = config_of(name).sde
    betas = (
        sde_lib.create_sde(**sde.to_dict()).discrete_betas().astype(ml_dtypes.bfloat16 if dtype[0] == "b" else dtype)
    )
    found, _ = compvis.translate(dotted(unet_shapes("sd15")), {}, {}, betas, None, None)
    assert dict(found.sde) == dict(sde)


def test_a_chain_of_another_shape_is_refused():
    linear = np.linspace(1e-4, 0.02, 500)
    found, _ = compvis.translate(dotted(unet_shapes("sd15")), {}, {}, linear, None, None)
    np.testing.assert_allclose(sde_lib.create_sde(**found.sde.to_dict()).discrete_betas(), linear, rtol=1e-6)
    with pytest.raises(ValueError, match="The file's 500 betas, .* are even neither in themselves nor in their roots"):
        compvis.translate(dotted(unet_shapes("sd15")), {}, {}, linear**1.5 / 0.02**0.5 + 9e-5, None, None)


def test_the_unconditional_one_has_the_published_number_of_parameters():
    shapes = unet_shapes("ldm_lsun_bedroom")
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 274_056_163  # diffusers' UNet2DModel counts them


@pytest.mark.parametrize(("name", "codec"), [("sd15", "sd_codec"), ("ldm_imagenet", "ldm_codec")])
def test_a_codec_has_the_published_names_and_shapes(name, codec):
    latent = config_of(name).latent
    assert digest(torch_shapes(models.codec_shapes(models.create_codec(latent.to_dict())))) == PUBLISHED[codec]


def test_encoders_of_texts_images_and_classes_have_the_published_names_and_shapes():
    for name in ("sd15", "sd2"):
        encoder = models.create_text_encoder(config_of(name).latent.text.to_dict())
        assert digest(torch_shapes(models.text_shapes(encoder))) == PUBLISHED[f"{name}_text"]
    image = CLIPImage(width=1024, mlp_width=4096, num_layers=24, num_heads=16, patch_size=14, projection_dim=768)
    assert digest(torch_shapes(models.image_shapes(image))) == PUBLISHED["clip_image"]
    table = models.create_text_encoder(config_of("ldm_imagenet").latent.text.to_dict())
    assert fitting.shapes(models.text_shapes(table)) == {"embedding/embedding": (1001, 512)}


def test_the_chains_are_the_published_ones_and_level_i_is_label_i():
    for name, first, last in (("sd15", 0.00085, 0.012), ("ldm_imagenet", 0.0015, 0.0195)):
        sde = sde_lib.create_sde(**config_of(name).sde.to_dict())
        betas = np.linspace(first**0.5, last**0.5, 1000) ** 2
        alphas = np.sqrt(np.cumprod(1 - betas))
        # LD3 tells its networks 1000 (t' - 1/1000), where level k, from 1, is t' = k/1000.
        level = np.array([0, 17, 500, 999])
        t = level / 999
        np.testing.assert_allclose(sde.alpha(t), alphas[level], rtol=1e-10)
        np.testing.assert_allclose(sde.index(t), 1000 * ((level + 1) / 1000 - 1 / 1000), atol=1e-9)


def test_sizes_and_predictions_of_the_second_stable_diffusion_differ_by_version():
    v, base = config_of("sd2"), config_of("sd2", "base")
    assert (v.data.image_size, v.model.predicts) == (96, "v") and (base.data.image_size, base.model.predicts) == (
        64,
        "eps",
    )
    assert image_shape(v) == (768, 768, 3) and image_shape(config_of("ldm_imagenet")) == (256, 256, 3)
