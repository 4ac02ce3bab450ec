"""The settings of a diffusers folder (config.json, scheduler_config.json) in our layout.

For `UNet2DModel` networks and, with their codecs and text encoders (`configs.diffusers_parts`), the latent ones.

The scheduler says how the network was trained: the process, what the output is, and the data range. Its way of sampling
is not taken over. Without a scheduler the conventions of the published folders hold: a Fourier
embedding belongs to a VE score model on images in [0, 1], another to DDPM's chain of 1000 linear betas on [-1, 1].
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base, diffusers_parts

CLASS = "UNet2DModel"
# Keys of config.json that are attributes of models.unet2d.UNet2D under the same name, and their defaults in diffusers.
_SAME = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "num_train_timesteps": None,
    "class_embed_type": None,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
}
_OTHER = {
    "sample_size": None,
    "in_channels": 3,
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "time_embedding_type": "positional",
    "num_class_embeds": None,
}
_PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def translate(
    network: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None,
    source: str,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
) -> ConfigDict:
    """A full config from the content of config.json and, where there are any, of scheduler_config.json and the parts'.

    Args:
      source: the folder, for messages.
      parts: config.json of a pipeline's "vae" and "text_encoder".

    Raises: ValueError that names the key for another class, a setting without a counterpart or an unknown key.
    """
    kind = network.get("_class_name")
    if kind not in (CLASS, diffusers_parts.CONDITION):
        supported = f"{CLASS} and {diffusers_parts.CONDITION}"
        raise ValueError(f"{source}: config.json is of a {kind!r}; only {supported} are supported.")
    config = _latent(network, source) if kind == diffusers_parts.CONDITION else _image(network, source)
    _set_process(config, scheduler or {}, config.model.embedding_type == "fourier", source)
    if parts:
        _set_parts(config, parts, source)
    return config


def _latent(network: Mapping[str, Any], source: str) -> ConfigDict:
    """Of a `UNet2DConditionModel`."""
    config = base.get_config()
    model, data = diffusers_parts.condition(network, source)
    with config.unlocked():
        config.model.update(model)
    config.data.update(image_size=_side(network.get("sample_size"), source), **data)
    return config


def _set_parts(config: ConfigDict, parts: Mapping[str, Mapping[str, Any]], source: str) -> None:
    """config.latent of a pipeline, for a network that sees latents alone."""
    if "vae" in parts:
        config.latent.update(diffusers_parts.codec(parts["vae"], f"{source}/vae"))
        seen = config.latent.vq_embed_dim or config.latent.channels
        if seen != config.data.num_channels:
            raise ValueError(
                f"{source}: the network's in_channels={config.data.num_channels} are not the {seen} of a latent; "
                "networks that see a mask or another image beside it (inpainting, depth, upscaling) are not supported."
            )
    if "text_encoder" in parts:
        config.latent.text.update(diffusers_parts.text_encoder(parts["text_encoder"], f"{source}/text_encoder"))


def _side(size: Any, source: str) -> int:
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise ValueError(f"{source}: sample_size in config.json is {size!r}; set it to the side of a square image.")
    return size


def _image(network: Mapping[str, Any], source: str) -> ConfigDict:
    """Of a `UNet2DModel`."""
    if unknown := sorted(key for key in network if not key.startswith("_") and key not in _SAME | _OTHER):
        raise ValueError(f"{source}: config.json has {', '.join(unknown)}, which this version does not know.")
    settings = {**_SAME, **_OTHER, **{key: value for key, value in network.items() if not key.startswith("_")}}
    config = base.get_config()
    with config.unlocked():
        config.model.update({key: settings[key] for key in _SAME})
    widths, size = settings["block_out_channels"], _side(settings["sample_size"], source)
    config.model.update(
        name="unet2d",
        nf=widths[0],
        ch_mult=tuple(width / widths[0] for width in widths),
        num_res_blocks=settings["layers_per_block"],
        embedding_type=settings["time_embedding_type"],
    )
    config.data.update(
        image_size=size, num_channels=settings["in_channels"], num_classes=settings["num_class_embeds"] or 0
    )
    return config


def _set_process(config: ConfigDict, scheduler: Mapping[str, Any], fourier: bool, source: str) -> None:
    """config.sde, the data range, what the network predicts and a sampler that suits it, from the scheduler."""
    name = scheduler.get("_class_name", "ScoreSdeVeScheduler" if fourier else "DDPMScheduler")
    if name in ("ScoreSdeVeScheduler", "KarrasVeScheduler"):
        _set_ve(config, scheduler, name)
    elif name == "ScoreSdeVpScheduler":
        beta_min, beta_max = float(scheduler.get("beta_min", 0.1)), float(scheduler.get("beta_max", 20))
        config.sde.update(name="vpsde", beta_min=beta_min, beta_max=beta_max)
        config.sde.num_scales = scheduler.get("num_train_timesteps", 2000)
        config.data.centered = True
        config.model.predicts = "eps"
    elif name.startswith("EDM"):
        _set_edm(config, scheduler, source)
    elif name == "DDPMScheduler" or "beta_schedule" in scheduler:
        _set_chain(config, scheduler, source)
    else:
        raise ValueError(f"{source}: the scheduler {name} has no beta_schedule; its process is not supported.")


def _set_ve(config: ConfigDict, scheduler: Mapping[str, Any], name: str) -> None:
    # KarrasVeScheduler samples the same networks, with noise scales in units of images in [-1, 1].
    low, high, unit = (0.02, 100.0, 2) if name == "KarrasVeScheduler" else (0.01, 1348.0, 1)
    low, high = scheduler.get("sigma_min", low) / unit, scheduler.get("sigma_max", high) / unit
    num_scales = scheduler.get("num_train_timesteps", 2000)
    config.sde.update(name="vesde", sigma_min=low, sigma_max=high, num_scales=num_scales)
    config.sampling.snr = scheduler.get("snr", 0.15)


def _set_edm(config: ConfigDict, scheduler: Mapping[str, Any], source: str) -> None:
    if scheduler.get("prediction_type", "epsilon") != "epsilon":
        raise _unsupported(source, "prediction_type", scheduler["prediction_type"], "epsilon")
    sigma_min, sigma_max = scheduler.get("sigma_min", 0.002), scheduler.get("sigma_max", 80.0)
    config.sde.update(name="edmsde", sigma_min=sigma_min, sigma_max=sigma_max, rho=scheduler.get("rho", 7.0))
    config.model.update(scaling="edm", scaling_label="c_noise", sigma_data=scheduler.get("sigma_data", 0.5))
    config.data.centered = True
    config.sampling.update(method="heun", num_steps=18 if config.data.image_size <= 32 else 40)


def _set_chain(config: ConfigDict, scheduler: Mapping[str, Any], source: str) -> None:
    schedule, predicts = scheduler.get("beta_schedule", "linear"), scheduler.get("prediction_type", "epsilon")
    if schedule not in _SCHEDULES:
        raise _unsupported(source, "beta_schedule", schedule, ", ".join(_SCHEDULES))
    if predicts not in _PREDICTS:
        raise _unsupported(source, "prediction_type", predicts, ", ".join(_PREDICTS))
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        if scheduler.get(key):
            raise _unsupported(source, key, scheduler[key], "null or false")
    steps = scheduler.get("num_train_timesteps", 1000)
    beta_min, beta_max = (float(scheduler.get(key, value)) for key, value in (("beta_start", 1e-4), ("beta_end", 0.02)))
    config.sde.update(name="discretevpsde", schedule=_SCHEDULES[schedule], num_scales=steps)
    config.sde.update(beta_min=beta_min * steps, beta_max=beta_max * steps)
    config.model.update(predicts=_PREDICTS[predicts], continuous=False)
    config.data.centered = True
    config.sampling.update(method="ddim", num_steps=50)


def _unsupported(source: str, key: str, value: Any, choices: str) -> ValueError:
    return ValueError(f"{source}: {key}={value!r} of the scheduler is not supported; supported: {choices}.")
