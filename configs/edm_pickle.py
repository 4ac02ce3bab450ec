"""The architecture that an EDM `.pkl` carries (`checkpoints.edm_pickle`), as a config in our layout.

Such a file needs no config: `python main.py --checkpoint edm-cifar10-32x32-cond-vp.pkl --workdir W`. Settings that a
pickle leaves out have EDM's defaults; the sampler is EDM's: Heun from sigma 80 to 0.002 (clipped to what the network
was trained on), 18 steps up to 32 pixels and 40 above.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base

# Wrapper -> our name of its scaling, and the U-Net it has by default.
_WRAPPERS = {
    "EDMPrecond": ("edm", "DhariwalUNet"),
    "VPPrecond": ("vp", "SongUNet"),
    "VEPrecond": ("ve", "SongUNet"),
    "iDDPMPrecond": ("iddpm", "DhariwalUNet"),
}

# U-Net -> our name, and the settings that a pickle may leave out, in our names.
_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "SongUNet": (
        "song_unet",
        dict(nf=128, ch_mult=(1, 2, 2, 2), num_res_blocks=4, attn_resolutions=(16,), dropout=0.10, fir_kernel=(1, 1))
        | dict(channel_mult_emb=4, channel_mult_noise=1, augment_dim=0, embedding_type="positional")
        | dict(progressive_input="none", progressive="none"),
    ),
    "DhariwalUNet": (
        "dhariwal_unet",
        dict(nf=192, ch_mult=(1, 2, 3, 4), num_res_blocks=3, attn_resolutions=(32, 16, 8), dropout=0.10)
        | dict(channel_mult_emb=4, augment_dim=0),
    ),
}

_RENAMED = {
    "model_channels": "nf",
    "channel_mult": "ch_mult",
    "num_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "dropout": "dropout",
    "channel_mult_emb": "channel_mult_emb",
    "channel_mult_noise": "channel_mult_noise",
    "augment_dim": "augment_dim",
    "embedding_type": "embedding_type",
    "resample_filter": "fir_kernel",
    "encoder_type": "progressive_input",
    "decoder_type": "progressive",
}
_VALUES = {
    "encoder_type": {"standard": "none", "skip": "input_skip", "residual": "residual"},
    "decoder_type": {"standard": "none", "skip": "output_skip"},
}


def translate(architecture: Mapping[str, Any], source: str) -> ConfigDict:
    """The config of an EDM network.

    Args:
      architecture: what `checkpoints.read(file).config` gives for a `.pkl`.
      source: the file, for messages.

    Raises: ValueError for a wrapper or a U-Net that EDM does not have, or a setting of unknown value.
    """
    wrapper, model = architecture.get("class_name"), architecture.get("model", {})
    if wrapper not in _WRAPPERS:
        raise ValueError(f"{source} holds a network of class {wrapper!r}; choose one of {sorted(_WRAPPERS)}.")
    scaling, default_unet = _WRAPPERS[wrapper]
    given = {**model.get("init_kwargs", {}), **architecture.get("init_kwargs", {})}
    unet = given.get("model_type") or model.get("class_name") or default_unet
    if unet not in _NETWORKS:
        raise ValueError(f"{source} holds a U-Net of class {unet!r}; choose one of {sorted(_NETWORKS)}.")
    config = base.get_config()
    _set_process(config, scaling, {**given, **architecture.get("attributes", {})})
    name, settings = _NETWORKS[unet]
    config.model.update(name=name, predicts="x0", scaling=scaling, scaling_label="c_noise", **settings)
    for theirs, ours in _RENAMED.items():
        if theirs in given and ours in settings:
            value = _value(theirs, given[theirs], source)
            config.model[ours] = tuple(value) if isinstance(value, list) else value
    config.model.learn_sigma = scaling == "iddpm"
    size = int(given["img_resolution"])
    config.data.update(image_size=size, num_channels=int(given["img_channels"]), centered=True)
    config.data.num_classes = int(given.get("label_dim") or 0)
    config.sampling.update(method="heun", num_steps=18 if size <= 32 else 40, microbatch=8 if size <= 32 else 2)
    return config


def _set_process(config: ConfigDict, scaling: str, settings: Mapping[str, Any]) -> None:
    """The noise scales of EDM's sampler within those of the wrapper, and what its scaling is made of."""
    low, high = float(settings.get("sigma_min", 0.0)), float(settings.get("sigma_max", float("inf")))
    config.sde.update(name="edmsde", sigma_min=max(0.002, low), sigma_max=min(80.0, high))
    config.model.sigma_data = float(settings.get("sigma_data", 0.5))
    if scaling in ("vp", "iddpm"):
        config.sde.num_scales = int(settings.get("M", 1000))
    if scaling == "vp":
        beta_min = float(settings.get("beta_min", 0.1))
        config.sde.update(beta_min=beta_min, beta_max=beta_min + float(settings.get("beta_d", 19.9)))
    if scaling == "iddpm":
        config.model.update(c_1=float(settings.get("C_1", 0.001)), c_2=float(settings.get("C_2", 0.008)))


def _value(key: str, value: Any, source: str) -> Any:
    if key not in _VALUES:
        return value
    if value not in _VALUES[key]:
        raise ValueError(f"{source}: {key}={value!r} is unknown; choose one of {sorted(_VALUES[key])}.")
    return _VALUES[key][value]
