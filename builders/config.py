"""Configs: from ours, from files written for score_sde, from a checkpoint; and the short flags put into them."""

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import checkpoints
from builders import latent_parts
from configs import base as base_config
from configs import diffusers, edm_pickle, methods, pd_unofficial, score_sde


def resolve_config(
    config: ConfigDict | str | Path | None, checkpoint: checkpoints.Checkpoint | None = None
) -> ConfigDict:
    """A config in our layout from ours, score_sde's, the path of either's file, or (None) the checkpoint's own."""
    if config is None:
        if checkpoint is None or checkpoint.config is None:
            raise ValueError(
                f"{checkpoint.path if checkpoint else 'The checkpoint'} does not carry its architecture; "
                "name a config with --config (see configs/)."
            )
        if checkpoint.format == "edm_pickle":
            return edm_pickle.translate(checkpoint.config, str(checkpoint.path))
        if checkpoint.format == "distillation_torch":
            shapes = {name: tensor.shape for name, tensor in checkpoint.raw.items()}
            return pd_unofficial.translate(shapes, checkpoint.config, str(checkpoint.path))
        if checkpoint.format == "diffusers":
            parts = {name: part.config for name, part in checkpoint.extra.get("parts", {}).items()}
            return _with_guidance(
                diffusers.translate(checkpoint.config, checkpoint.extra.get("scheduler"), str(checkpoint.path), parts)
            )
        if checkpoint.format == "compvis":
            return _with_guidance(latent_parts.infer_config(checkpoint))
        config = ConfigDict(checkpoint.config)
    found = load_config_file(config) if isinstance(config, str | Path) else config
    return _with_defaults(score_sde.translate(found) if score_sde.is_score_sde_layout(found) else found)


def _with_guidance(config: ConfigDict) -> ConfigDict:
    """The usual scale for a network that reads prompts, or classes as context: it is published to be guided."""
    usual = {"clip": 7.5, "class": 2.0}
    config.guidance.cfg_scale = usual.get(config.latent.text.kind, config.guidance.cfg_scale)
    return config


def _with_defaults(config: ConfigDict) -> ConfigDict:
    """`config` over the defaults of every key, so that a file written by an older version still has the newer keys."""
    full = base_config.get_config()
    with full.unlocked():
        full.update(config.to_dict())
    return full


def load_config_file(path: str | Path) -> ConfigDict:
    """Runs a config file, ours ("file.py" or "file.py:method") or one written for score_sde. A config is code."""
    file, _, method = str(path).partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no config file {file} (--config).")
    if score_sde.is_foreign(file):
        return score_sde.load_foreign(file, method)
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={path}: {file} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(method) if method else module.get_config()


def data_range(config: ConfigDict) -> tuple[float, float]:
    """(low, high): the values of black and white in the model's images."""
    if config.data.range:
        low, high = config.data.range
        return low, high
    return (-1.0, 1.0) if config.data.centered else (0.0, 1.0)


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Sets dotted keys; a "sampling.method" that names a method of configs/methods.py applies the whole of its edit."""
    for key, value in overrides.items():
        if key == "sampling.method" and value in methods.METHODS:
            methods.apply(config, value)
        else:
            config.update_from_flattened_dict({key: value})


def changed(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy with these keys set (`apply_overrides`)."""
    found = copy.deepcopy(config)
    apply_overrides(found, overrides)
    return found


def shipped(path: str) -> str:
    """`path`, or the file of this name in the repository: shipped configs work from any folder."""
    here = Path(__file__).parent.parent / path
    return str(here) if not Path(path).exists() and here.is_file() else path
