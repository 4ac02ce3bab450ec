"""The settings of the parts of a latent pipeline: unet/config.json as config.model, the others as config.latent.

Keys left out of a file have diffusers' or transformers' defaults. A key that changes nothing here (the size of training
images, where to cast for half precision) is read over; any other key that is not known is refused.
"""

from collections.abc import Mapping
from typing import Any

CODECS = {"AutoencoderKL": "kl", "VQModel": "vq"}
# config.json -> (config.latent, diffusers' default)
_CODEC = {
    "in_channels": ("image_channels", 3),
    "latent_channels": ("channels", 4),
    "block_out_channels": ("block_out_channels", [64]),
    "layers_per_block": ("layers_per_block", 1),
    "down_block_types": ("down_block_types", ["DownEncoderBlock2D"]),
    "up_block_types": ("up_block_types", ["UpDecoderBlock2D"]),
    "norm_num_groups": ("norm_num_groups", 32),
    "act_fn": ("act_fn", "silu"),
    "mid_block_add_attention": ("mid_attention", True),
    "scaling_factor": ("scale_factor", 0.18215),
}
_KL = {"use_quant_conv": ("quant_conv", True), "use_post_quant_conv": ("post_quant_conv", True)}
_VQ = {
    "num_vq_embeddings": ("num_vq_embeddings", 256),
    "vq_embed_dim": ("vq_embed_dim", 0),
    "latent_channels": ("channels", 3),
}
# Keys with one value that is supported; the first is also the default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "out_channels": (3,),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
    "norm_type": ("group",),
    "lookup_from_codebook": (False,),
}
_IGNORED = {"sample_size", "force_upcast"}

CONDITION = "UNet2DConditionModel"
# Keys of config.json that are attributes of models.unet2d_condition.UNet2DCondition under the same name.
_UNET = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "class_embed_type": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
}
_UNET_OTHER = {"in_channels", "block_out_channels", "layers_per_block", "num_class_embeds"}
# Linear or convolutional projections are the same function; attention weights are always float32 here.
_UNET_IGNORED = {"sample_size", "use_linear_projection", "upcast_attention", "addition_time_embed_dim"}
_UNET_IGNORED |= {"addition_embed_type_num_heads", "projection_class_embeddings_input_dim"}
_UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "num_attention_heads": (None,),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "dual_cross_attention": (False,),
    "addition_embed_type": (None,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False, None),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}


def condition(network: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries of config.model and config.data from the config.json of a `UNet2DConditionModel`; raises as `codec`."""
    check_keys(network, set(_UNET) | _UNET_OTHER | _UNET_IGNORED, _UNET_FIXED, source)
    model = {key: network.get(key, default) for key, default in _UNET.items()}
    context = model["cross_attention_dim"]
    if isinstance(context, list) and len(set(context)) > 1:
        raise ValueError(f"{source}: cross_attention_dim={context} in config.json names contexts of several widths.")
    model["cross_attention_dim"] = context[0] if isinstance(context, list) else context
    widths = network.get("block_out_channels", [320, 640, 1280, 1280])
    model |= dict(
        name="unet2d_condition",
        nf=widths[0],
        ch_mult=[width / widths[0] for width in widths],
        num_res_blocks=network.get("layers_per_block", 2),
        embedding_type="positional",
    )
    data = {"num_channels": network.get("in_channels", 4), "num_classes": network.get("num_class_embeds") or 0}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}, data


def codec(network: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Entries of config.latent from the config.json of an `AutoencoderKL` or `VQModel`.

    Args:
      source: the file or folder, for messages.

    Raises: ValueError that names the key for another class, a setting without a counterpart or an unknown key.
    """
    kind = network.get("_class_name")
    if kind not in CODECS:
        raise ValueError(f"{source}: config.json is of a {kind!r}; the supported codecs are {', '.join(CODECS)}.")
    table = _CODEC | (_KL if CODECS[kind] == "kl" else _VQ)
    check_keys(network, set(table) | _IGNORED, _FIXED, source)
    found = {ours: network.get(key, default) for key, (ours, default) in table.items()}
    found["vq_embed_dim"] = found.get("vq_embed_dim") or 0
    found["scale_factor"] = float(found["scale_factor"])
    return {"kind": CODECS[kind], **{key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}}


# config.json of transformers -> (config.latent.text, transformers' default)
_TEXT = {
    "vocab_size": ("vocab_size", 49408),
    "max_position_embeddings": ("max_tokens", 77),
    "hidden_size": ("width", 512),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 8),
    "intermediate_size": ("mlp_width", 2048),
    "hidden_act": ("act", "quick_gelu"),
    "eos_token_id": ("eos_token_id", 49407),
}
_IMAGE = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("mlp_width", 3072),
    "hidden_act": ("act", "quick_gelu"),
}


def text_encoder(network: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Entries of config.latent.text from the config.json of a CLIP text model; raises ValueError as `codec`.

    transformers writes dozens of keys that change nothing here, so unknown ones are read over.
    """
    kinds = ("CLIPTextModel", "CLIPTextModelWithProjection")
    kind = (network.get("architectures") or [network.get("_class_name", kinds[0])])[0]
    if kind not in kinds:
        raise ValueError(f"{source}: config.json is of a {kind!r}; the supported text encoders are {', '.join(kinds)}.")
    projection = network.get("projection_dim", 512) if kind == kinds[1] else 0
    return {"kind": "clip", **_clip(network, _TEXT, source), "projection_dim": projection}


def image_encoder(network: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of `models.clip.CLIPImage` from the config.json of a `CLIPVisionModelWithProjection`."""
    return {**_clip(network, _IMAGE, source), "projection_dim": network.get("projection_dim", 512)}


def _clip(network: Mapping[str, Any], table: Mapping[str, tuple[str, Any]], source: str) -> dict[str, Any]:
    check_keys({"layer_norm_eps": network.get("layer_norm_eps", 1e-5)}, set(), {"layer_norm_eps": (1e-5,)}, source)
    return {ours: network.get(key, default) for key, (ours, default) in table.items()}


def check_keys(settings: Mapping[str, Any], known: set[str], fixed: Mapping[str, tuple[Any, ...]], source: str) -> None:
    """Raises ValueError for a key that is neither known nor fixed, or is fixed and has another value."""
    if unknown := sorted(key for key in settings if not key.startswith("_") and key not in known | set(fixed)):
        raise ValueError(f"{source}: config.json has {', '.join(unknown)}, which this version does not know.")
    for key, values in fixed.items():
        value = settings.get(key, values[0])
        if (tuple(value) if isinstance(value, list) else value) not in values:
            raise ValueError(f"{source}: {key}={value!r} in config.json is not supported; supported: {values[0]!r}.")
