"""The settings of a latent pipeline's other parts (vae/config.json, text_encoder/config.json) as config.latent.

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


def check_keys(settings: Mapping[str, Any], known: set[str], fixed: Mapping[str, tuple[Any, ...]], source: str) -> None:
    """Raises ValueError for a key that is neither known nor fixed, or is fixed and has another value."""
    if unknown := sorted(key for key in settings if not key.startswith("_") and key not in known | set(fixed)):
        raise ValueError(f"{source}: config.json has {', '.join(unknown)}, which this version does not know.")
    for key, values in fixed.items():
        value = settings.get(key, values[0])
        if (tuple(value) if isinstance(value, list) else value) not in values:
            raise ValueError(f"{source}: {key}={value!r} in config.json is not supported; supported: {values[0]!r}.")
