"""A latent model in one file, as CompVis' programs train it: U-Net, first stage and conditioning side by side.

`torch.save` of {"state_dict": ..., "global_step", and what PyTorch Lightning adds}, or the tensors alone (also as
safetensors). By the first words of their names they are

* `model.diffusion_model.`: the U-Net;
* `model_ema.`: its moving average, under the names of the U-Net with every dot left out;
* `first_stage_model.`: the codec; `cond_stage_model.`: the text encoder or the table of classes;
* `betas` and the numbers that follow from them, and `scale_factor` where it was measured on the data.

Objects of other programs in the file (callbacks, optimisers) stand as inert placeholders: their names are listed, and
nothing of theirs is imported or run.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints import torch_pickle
from checkpoints.base import Checkpoint, Part, Tensors
from checkpoints.pickle_data import Instance, Placeholder
from checkpoints.torch_pickle import Tensor, to_numpy

UNET, EMA, CODEC, CONDITION = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
_PARTS = {"vae": CODEC, "text_encoder": CONDITION}
_NUMBERS = ("betas", "scale_factor")
_NOT_WEIGHTS = ("decay", "num_updates")  # of the moving average


class _Names(Mapping[str, Any]):
    """What stands for each name of a pickle: torch's own for tensors, a placeholder for any other, which is noted."""

    def __init__(self) -> None:
        self.placeholders: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        if name in torch_pickle.ALLOWED:
            return torch_pickle.ALLOWED[name]
        self.placeholders[name] = None
        return lambda *args: Placeholder(name, args)

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(torch_pickle.ALLOWED)

    def __len__(self) -> int:
        return len(torch_pickle.ALLOWED)


def find(path: Path) -> Checkpoint | None:
    """The latent model in a file of `torch.save` with objects of other programs; None if it holds another thing.

    Raises ValueError for tensors that lie outside the file.
    """
    names = _Names()
    try:
        tree = torch_pickle.load(path, names)
    except ValueError:
        return None  # the reader that allows no foreign names says what is wrong
    return of_tree(tree, path, tuple(names.placeholders))


def of_tree(tree: Any, path: Path, placeholders: tuple[str, ...] = ()) -> Checkpoint | None:
    """The latent model in what was saved; None if that is another thing. Raises as `find`."""
    if not isinstance(tree, dict):
        return None
    state = tree.get("state_dict", tree)
    if not isinstance(state, dict) or not any(str(name).startswith(UNET) for name in state):
        return None
    tensors = {str(name): to_numpy(t, str(name), str(path)) for name, t in state.items() if isinstance(t, Tensor)}
    others = sorted(str(name) for name, value in state.items() if isinstance(value, Instance))
    step = tree.get("global_step") if state is not tree else None
    return arrange(tensors, path, step if isinstance(step, int) else None, (*placeholders, *others))


def arrange(tensors: Tensors, path: Path, step: int | None = None, placeholders: tuple[str, ...] = ()) -> Checkpoint:
    """The tensors of a latent model, part by part.

    `extra` has `parts` ("vae" and "text_encoder"), `placeholders`, and of `betas` and `scale_factor` what the file has.

    Raises ValueError where the moving average does not cover the U-Net.
    """
    raw = _part(tensors, UNET)
    parts = {name: Part(found, None, path) for name, prefix in _PARTS.items() if (found := _part(tensors, prefix))}
    extra: dict[str, Any] = {"parts": parts, "placeholders": placeholders}
    extra |= {name: tensors[name] for name in _NUMBERS if name in tensors}
    ema = _average(raw, _part(tensors, EMA), path)
    notes = [] if ema else ["The file has one set of weights of the U-Net."]
    if placeholders:
        notes.append(
            f"{len(placeholders)} names of other programs in the file were not imported: {_list(placeholders)}."
        )
    # What the heads of an attention without transformer blocks are, no tensor shows.
    config = {"step": step} if any(".transformer_blocks." in name for name in raw) else None
    return Checkpoint("compvis", raw, ema, config, step, path, extra, tuple(notes))


def is_latent(tensors: Mapping[str, Any]) -> bool:
    """Whether the names are those of a whole latent model."""
    return any(name.startswith(UNET) for name in tensors)


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _average(raw: Tensors, flat: Tensors, path: Path) -> Tensors | None:
    """The moving average under the names of the U-Net."""
    flat = {name: tensor for name, tensor in flat.items() if name not in _NOT_WEIGHTS}
    if not flat:
        return None
    spelt = {name: f"diffusion_model.{name}".replace(".", "") for name in raw}
    if len(set(spelt.values())) < len(spelt):
        raise ValueError(
            f"{path}: two tensors of the U-Net have one name in its moving average; it cannot be told apart."
        )
    wrong = [name for name, old in spelt.items() if old not in flat or flat[old].shape != raw[name].shape]
    if wrong:
        raise ValueError(
            f"{path}: its moving average lacks {len(wrong)} tensors of the U-Net, or has them in another shape: "
            f"{_list(wrong)}. Save the file again, or leave the average out."
        )
    return {name: flat[old] for name, old in spelt.items()}


def _list(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
