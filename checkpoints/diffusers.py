"""A diffusers model folder: `config.json` beside `diffusion_pytorch_model.safetensors` (or `.bin`, a torch file).

The folder may be the model's own or a pipeline's, with the model under `unet/`; the scheduler's settings, which say how
the network was trained, are taken along when they are there.
"""

import json
from pathlib import Path
from typing import Any

from checkpoints import safetensors_file, torch_layouts
from checkpoints.base import Checkpoint

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def read(path: Path) -> Checkpoint:
    """The weights under diffusers' names; `config` is config.json, `extra["scheduler"]` the scheduler's settings.

    Raises: FileNotFoundError naming the missing file; ValueError for a broken one.
    """
    model = path / "unet" if (path / "unet" / "config.json").exists() else path
    if not (model / "config.json").exists():
        raise FileNotFoundError(f"{path} is a folder without config.json, so no diffusers model; name the weight file.")
    weights = [model / name for name in _WEIGHTS if (model / name).exists()]
    if not weights:
        found = sorted(file.name for file in model.iterdir())
        raise FileNotFoundError(
            f"{model} has none of {', '.join(_WEIGHTS)}; it holds {found}. Rename or merge the weights."
        )
    if weights[0].suffix == ".safetensors":
        raw, _ = safetensors_file.load(weights[0])
    else:
        raw = torch_layouts.read(weights[0]).raw
    schedulers = [path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"]
    scheduler = next((_json(file) for file in schedulers if file.exists()), None)
    extra = {} if scheduler is None else {"scheduler": scheduler}
    return Checkpoint("diffusers", raw, None, _json(model / "config.json"), None, path, extra, ())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the settings of a model.")
    return content
