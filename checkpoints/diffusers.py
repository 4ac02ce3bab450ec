"""A diffusers folder: a model's own, or a pipeline's with a model in each sub-folder and `model_index.json` above them.

A model is `config.json` beside its weights, one safetensors file (or `.bin`, a torch file) or several with an index.
Of a pipeline the denoising network is the checkpoint, and its other networks are `extra["parts"]`. The scheduler's
settings, which say how the network was trained, are taken along when they are there.
"""

import json
from pathlib import Path
from typing import Any

from checkpoints import safetensors_file, torch_layouts, torch_pickle
from checkpoints.base import Checkpoint, Part, Tensors

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers' weights, and of transformers'
_CODECS, _TEXT_ENCODERS = ("vae", "vqvae"), ("text_encoder",)  # sub-folders of a pipeline


def read(path: Path) -> Checkpoint:
    """The weights under diffusers' names; `config` is config.json, `extra["scheduler"]` the scheduler's settings.

    Of a pipeline `extra` also has `pipeline` (model_index.json), `parts` ("vae" and "text_encoder") and `tokenizer`,
    that folder, each where the pipeline has it.

    Raises: FileNotFoundError naming the missing file; ValueError for a broken one.
    """
    index = path / "model_index.json"
    pipeline = _json(index) if index.exists() else {}
    extra: dict[str, Any] = {}
    notes: list[str] = []
    if pipeline:
        extra, notes = _others(path, pipeline)
    model = path / "unet" if pipeline or (path / "unet" / "config.json").exists() else path
    if not pipeline and not (model / "config.json").exists():
        raise FileNotFoundError(f"{path} is a folder without config.json, so no diffusers model; name the weight file.")
    schedulers = [path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"]
    scheduler = next((_json(file) for file in schedulers if file.exists()), None)
    if scheduler is not None:
        extra["scheduler"] = scheduler
    part = read_part(model)
    return Checkpoint("diffusers", part.tensors, None, part.config, None, path, extra, tuple(notes))


def _others(path: Path, pipeline: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a pipeline has beside its denoising network; notes about what is left unread."""
    declared = {name for name, entry in pipeline.items() if isinstance(entry, list) and entry and entry[0] is not None}
    parts = {"vae" if name in _CODECS else name: name for name in (*_CODECS, *_TEXT_ENCODERS) if name in declared}
    extra: dict[str, Any] = {"pipeline": pipeline}
    extra["parts"] = {part: read_part(path / name) for part, name in parts.items()}
    if "scheduler" in declared and not (path / "scheduler" / "scheduler_config.json").exists():
        raise FileNotFoundError(_missing(path / "scheduler" / "scheduler_config.json"))
    if "tokenizer" in declared:
        if not (path / "tokenizer").is_dir():
            raise FileNotFoundError(_missing(path / "tokenizer"))
        extra["tokenizer"] = path / "tokenizer"
    if "unet" not in declared:
        raise ValueError(
            f"{path / 'model_index.json'} names no unet, but {sorted(declared)}; other pipelines are not read."
        )
    unread = sorted(declared - {"unet", "scheduler", "tokenizer", *parts.values()})
    return extra, [f"Parts of the pipeline that are not used: {', '.join(unread)}."] if unread else []


def read_part(folder: Path) -> Part:
    """The network in a folder of diffusers or transformers, such as a CLIP model; raises as `read`."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(_missing(folder / "config.json"))
    return Part(_weights(folder), _json(folder / "config.json"), folder)


def _weights(folder: Path) -> Tensors:
    """The tensors of a folder; of several variants the one without a name, then the first in the order of names."""
    wanted = [f"{stem}{kind}" for kind in (".safetensors", ".bin") for stem in _STEMS]
    found = [folder / name for name in wanted if (folder / name).exists()]
    found += sorted(folder.glob("*.index.json"))
    found += [
        file for kind in (".safetensors", ".bin") for stem in _STEMS for file in sorted(folder.glob(f"{stem}.*{kind}"))
    ]
    if not found:
        names = sorted(file.name for file in folder.iterdir())
        raise FileNotFoundError(
            f"{folder} has none of {', '.join(wanted)}; it holds {names}. Download the weights too, or rename them."
        )
    if not found[0].name.endswith(".index.json"):
        return _tensors(found[0])
    shards = sorted(set(_json(found[0]).get("weight_map", {}).values()))
    tensors: Tensors = {}
    for shard in shards:
        if not (folder / shard).exists():
            raise FileNotFoundError(_missing(folder / shard))
        tensors |= _tensors(folder / shard)
    return tensors


def _tensors(file: Path) -> Tensors:
    if file.suffix == ".safetensors":
        return safetensors_file.load(file)[0]
    return torch_layouts.of_tree(torch_pickle.load(file), file).raw


def _missing(file: Path) -> str:
    return f"{file} is missing: the folder is not whole. Copy or download it again."


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the settings of a model.")
    return content
