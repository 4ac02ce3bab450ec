"""--from_image FILE.png: the image again, from what was written into it.

Every image carries the keys in which its run's config differs from the defaults, its index and the hash of the weights.
The weights themselves are looked for as always: --checkpoint, config.checkpoint, W/checkpoints.
"""

import json
from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from builders.model import Model
from configs import base
from modes.request import Request
from reports.images import read_png

# What fixes the pixels.
SECTIONS = ("seed", "precision", "checkpoint", "sde", "model", "data", "sampling", "guidance", "latent")


def settings_text(config: ConfigDict) -> str:
    """JSON of the keys of `config` that differ from the defaults of configs/base.py, of those that fix the pixels."""
    return json.dumps(_difference(_plain(config), _plain(base.get_config())))


def repeated(request: Request) -> Request:
    """The request that draws the image `request.from_image` again; flags on the command line change it further.

    Raises ValueError for an image without settings, or a --config or --seeds beside it.
    """
    path = request.from_image
    if request.config is not None or request.seeds:
        raise ValueError(f"--from_image={path} brings its own config and index: leave --config and --seeds out.")
    text = read_png(path).text
    if not {"config", "index"} <= set(text):
        raise ValueError(
            f"--from_image={path} holds no settings (its text has {sorted(text)}); --mode=sample writes them."
        )
    config = base.get_config()
    config.update(json.loads(text["config"]))
    return request._replace(config=config, seeds=text["index"])


def check_weights(path: str, model: Model) -> None:
    """Warns when the image was drawn with other weights than `model` has."""
    drawn_with = read_png(path).text.get("weights")
    if drawn_with != model.weights_hash:
        logging.warning(
            "%s was drawn with the weights %.12s..., these are %.12s...: the image will be another one.",
            path,
            drawn_with,
            model.weights_hash,
        )


def _plain(config: ConfigDict) -> dict[str, Any]:
    """The sections as JSON has them, so that a tuple equals the list it becomes."""
    return json.loads(json.dumps({key: value for key, value in config.to_dict().items() if key in SECTIONS}))


def _difference(found: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
            inner = _difference(value, default[key])
            changed |= {key: inner} if inner else {}
        elif key not in default or value != default[key]:
            changed[key] = value
    return changed
