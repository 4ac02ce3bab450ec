"""The codecs against diffusers' on equal weights, and what the codebook does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import FAST_COMPILE, config_of, drawn_image, output_of, params_of, relative_error, tensors_of

import models
from configs import diffusers_parts
from models.autoencoder import AutoencoderKL, VQModel, sample_moments


def codec_of(case):
    codec = models.create_codec(diffusers_parts.codec(config_of(case), case))
    return codec, params_of(models.codec_shapes(codec), tensors_of(case))


def passes(codec, params, x, z):
    """All that a codec does, in one compilation."""
    methods = {"encoded": ("encode", x, {}), "decoded": ("decode", z, {})}
    if isinstance(codec, VQModel):
        methods["unquantised"] = ("decode", z, {"quantise": False})

    def run(params):
        return {k: codec.apply({"params": params}, v, method=m, **extra) for k, (m, v, extra) in methods.items()}

    return jax.jit(run, compiler_options=FAST_COMPILE)(params)


@pytest.mark.parametrize("case", ["kl", "kl_plain", "vq"])
def test_a_codec_equals_the_recorded_one(case):
    codec, params = codec_of(case)
    width = codec.vq_embed_dim if case == "vq" else codec.channels
    x, z = drawn_image("input.image", 1, 3, 8, 8), drawn_image("input.latent", 1, width, 4, 4)
    for name, ours in passes(codec, params, x, z).items():
        assert relative_error(ours, output_of(case, name)) < 1e-5, name


def test_the_codebook_gives_each_place_its_nearest_entry_and_passes_gradients():
    codec, params = codec_of("vq")
    codebook = np.asarray(params["quantize_embedding"]["embedding"])
    z = drawn_image("input.latent", 2, 2, 3, 5)
    quantise = lambda z: codec.apply({"params": params}, z, method="quantise")  # noqa: E731
    distances = np.linalg.norm(np.asarray(z)[..., None, :] - codebook, axis=-1)
    np.testing.assert_allclose(quantise(z), codebook[distances.argmin(-1)], atol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda z: quantise(z).sum())(z), np.ones(z.shape))


def test_log_variances_are_clipped_and_move_the_noise():
    moments = jnp.array([3.0, 0.0, -40.0, 2 * np.log(5.0)])[None, None, None]
    codec = AutoencoderKL(channels=2, block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, quant_conv=False)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), models.codec_shapes(codec))
    params["encoder"]["conv_out"]["bias"] = jnp.array([3.0, 0.0, -40.0, 25.0])
    encoded = passes(codec, params, jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 2)))["encoded"]
    np.testing.assert_allclose(encoded[0, 0, 0], [3.0, 0.0, -30.0, 20.0])
    latent = sample_moments(moments, jnp.array([1.0, -2.0])[None, None, None])
    np.testing.assert_allclose(latent[0, 0, 0], [3.0 + np.exp(-20), -10.0], rtol=1e-6)


def test_half_precision_keeps_the_head_in_the_type_of_the_input():
    codec = VQModel(channels=3, block_out_channels=(8, 8), norm_num_groups=4, num_vq_embeddings=4, dtype=jnp.bfloat16)
    x = jnp.ones((1, 4, 4, 3), jnp.float32)
    encoded, state = jax.eval_shape(
        lambda: codec.init_with_output(jax.random.key(0), x, method="encode", capture_intermediates=True)
    )
    assert encoded.dtype == jnp.float32
    assert state["intermediates"]["encoder"]["mid_block_resnets_0"]["__call__"][0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ("DownBlock2D",) * 4}, r"config.latent.down_block_types has \['DownBlock2D'\]"),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "config.latent.up_block_types has 1 entries for 4 levels"),
        ({"act_fn": "tanh"}, "config.latent.act_fn='tanh' is unknown"),
        ({"block_out_channels": (128, 200)}, r"block_out_channels has \[200\], which config.latent.norm_num_groups=32"),
        ({"kind": "none"}, "config.latent.kind='none' names no codec; choose one of"),
    ],
)
def test_a_codec_that_cannot_be_built_is_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        models.create_codec({"kind": "kl"} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "of a 'AutoencoderTiny'; the supported codecs are AutoencoderKL, VQModel"),
        ({"shift_factor": 0.1}, "shift_factor=0.1 in config.json is not supported; supported: None"),
        ({"lossy": 1}, "config.json has lossy, which this version does not know"),
    ],
)
def test_a_vae_without_a_counterpart_is_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=f"^vae: .*{message}"):
        diffusers_parts.codec(config_of("kl", **changes), "vae")
