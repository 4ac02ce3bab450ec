"""The U-Net of latent diffusion against diffusers' on equal weights, its context, and its names at full width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import FAST_COMPILE, config_of, drawn_image, output_of, params_of, relative_error, tensors_of

import models
from benchmarks.peers.latent_goldens import CLASSES, LABELS, drawn
from checkpoints import fitting
from configs import diffusers_parts
from models.spatial_transformer import SpatialTransformer
from models.unet2d_condition import UNet2DCondition

TINY = dict(nf=8, ch_mult=(1, 2), num_res_blocks=1, norm_num_groups=4, cross_attention_dim=6, attention_head_dim=2)
BLOCKS = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
)


def network_of(case):
    model, data = diffusers_parts.condition(config_of(case), case)
    return models.create_network(model["name"], model, num_classes=data["num_classes"]), data["num_channels"]


@pytest.mark.parametrize("case", ["sd1", "sd2", "mixed"])
def test_the_network_equals_the_recorded_one(case):
    network, channels = network_of(case)
    params = params_of(models.param_shapes(network, (4, 4, channels)), tensors_of(case))
    x, labels = drawn_image("input.x", 2, channels, 4, 4), jnp.array(LABELS, jnp.float32)
    context = jnp.asarray(drawn("input.context", (2, 3, 6)))
    classes = jnp.array(CLASSES) if network.num_classes else None
    run = jax.jit(lambda p: network.apply({"params": p}, x, labels, context, classes), compiler_options=FAST_COMPILE)
    assert relative_error(run(params), output_of(case, "output")) < 1e-5


def test_a_network_that_looks_at_a_context_asks_for_one_of_its_width():
    network = models.create_network("unet2d_condition", TINY | BLOCKS)
    params = models.param_shapes(network, (4, 4, 4))
    x, labels = jnp.zeros((2, 4, 4, 4)), jnp.zeros(2)
    with pytest.raises(ValueError, match="looks at a context and was given none; name texts with --prompts"):
        jax.eval_shape(lambda p: network.apply({"params": p}, x, labels), params)
    with pytest.raises(ValueError, match=r"The context has shape \(2, 3, 5\); this network looks at \(2, n, 6\)"):
        jax.eval_shape(lambda p: network.apply({"params": p}, x, labels, jnp.zeros((2, 3, 5))), params)


def test_a_network_without_cross_attention_needs_no_context():
    plain = dict(
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type="UNetMidBlock2D"
    )
    network = models.create_network("unet2d_condition", TINY | plain)
    shapes = fitting.shapes(models.param_shapes(network, (4, 4, 4)))
    assert not any("attention" in name for name in shapes)
    assert not any(name.startswith("mid_block_resnets_1") for name in shapes)


def test_half_precision_reaches_the_transformers_and_leaves_the_ends_alone():
    network = models.create_network("unet2d_condition", TINY | BLOCKS, dtype=jnp.bfloat16)
    x, labels = jnp.ones((1, 4, 4, 4), jnp.float32), jnp.ones((1,), jnp.float32)
    output, state = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), x, labels, capture_intermediates=True)
    )
    seen = {name: value["__call__"][0].dtype for name, value in state["intermediates"].items() if "__call__" in value}
    assert output.dtype == seen["conv_in"] == seen["conv_out"] == jnp.float32
    assert seen["down_blocks_0_attentions_0"] == seen["mid_block_attentions_0"] == jnp.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, r"down_block_types has \['AttnDownBlock2D'\]"),
        (
            {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
            "mid_block_type='UNetMidBlock2DSimpleCrossAttn' is unknown",
        ),
        (
            {"transformer_layers_per_block": (1,)},
            r"transformer_layers_per_block=\(1,\) has not one entry for each of 2",
        ),
        ({"embedding_type": "fourier"}, "embedding_type='fourier' is unknown; choose one of"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        models.create_network("unet2d_condition", TINY | BLOCKS | changes)


def test_heads_that_do_not_divide_the_channels_are_refused():
    network = models.create_network("unet2d_condition", TINY | BLOCKS | {"attention_head_dim": 3})
    with pytest.raises(ValueError, match="attention_head_dim=3 heads do not divide 8 channels"):
        models.param_shapes(network, (4, 4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time' in config.json is not supported"),
        (
            {"cross_attention_dim": [6, 8]},
            r"cross_attention_dim=\[6, 8\] in config.json names contexts of several widths",
        ),
        ({"adapters": 1}, "config.json has adapters, which this version does not know"),
    ],
)
def test_a_unet_without_a_counterpart_is_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=f"^unet: .*{message}"):
        diffusers_parts.condition(config_of("sd1", **changes), "unet")


def test_small_features_enter_a_transformer_with_a_millionth_under_the_root():
    x = 1e-3 * np.asarray(drawn_image("input.small", 1, 4, 3, 3), np.float64)
    identity = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    params = {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}, "proj_in": identity, "proj_out": identity}
    out = SpatialTransformer(heads=1, depth=0, groups=1).apply({"params": params}, jnp.asarray(x), None)
    np.testing.assert_allclose(out, x + (x - x.mean()) / np.sqrt(x.var() + 1e-6), rtol=1e-6)


def test_keys_left_out_of_a_config_have_the_defaults_of_diffusers():
    model, data = diffusers_parts.condition({"_class_name": "UNet2DConditionModel"}, "unet")
    assert models.create_network(model["name"], model) == UNet2DCondition()
    assert (UNet2DCondition().attention_head_dim, UNet2DCondition().cross_attention_dim) == (8, 1280)
    assert data == {"num_channels": 4, "num_classes": 0}
