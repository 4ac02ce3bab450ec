"""What the published PyTorch programs put into their files.

* score_sde_pytorch and PDS: {"optimizer", "model", "ema": {"decay", "num_updates", "shadow_params"}, "step"}.
  `shadow_params` is a list without names: the trainable parameters in the order of `model`. The `sigmas` buffer and the
  frozen Fourier frequencies `W` are not in it, so with a Fourier network every entry is one place away from where it
  seems to belong.
* The unofficial progressive-distillation program: {"G": state_dict, "n_timesteps", "time_scale"}.
* DSNO, `solver-model_<n>.pt`: {"model": state_dict, "ema": state_dict, "optim", "scheduler", "args"}.
* guided-diffusion (ADM) and many others: a bare state_dict.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.base import Checkpoint, Tensors
from checkpoints.names import BUFFERS, PARALLEL
from checkpoints.torch_pickle import Tensor, to_numpy


def of_tree(tree: Any, path: Path) -> Checkpoint:
    """What a `.pth` or `.pt` file of one of the layouts above holds (`torch_pickle.load`).

    Raises: ValueError for any other layout, damage, or an EMA list that does not match the model.
    """
    if _is_state_dict(tree):
        raw = _arrays(tree, str(path))
        adm = any(name.endswith("input_blocks.0.0.weight") for name in raw)
        return Checkpoint("openai_torch" if adm else "torch_state_dict", raw, None, None, None, path, {}, ())
    if isinstance(tree, dict) and _is_state_dict(tree.get("model")) and _is_state_dict(tree.get("ema")):
        return _operator(tree, path)
    if isinstance(tree, dict) and _is_state_dict(tree.get("model")):
        return _score_sde(tree, path)
    if isinstance(tree, dict) and _is_state_dict(tree.get("G")) and {"n_timesteps", "time_scale"} <= set(tree):
        return _student(tree, path)
    found = (
        f"a dict with the keys {sorted(map(str, tree))[:10]}" if isinstance(tree, dict) else f"a {type(tree).__name__}"
    )
    raise ValueError(
        f"{path} holds {found}; a state_dict, or a score_sde checkpoint with 'model' and 'ema', is needed. Save the "
        "part with the weights as a file of its own."
    )


def _score_sde(tree: Mapping[str, Any], path: Path) -> Checkpoint:
    raw = _arrays(tree["model"], str(path))
    step = tree.get("step")
    ema, extra, notes = None, {}, []
    if isinstance(tree.get("ema"), dict) and "shadow_params" in tree["ema"]:
        ema = _named_ema(tree["ema"]["shadow_params"], raw, str(path))
        extra = {"ema_rate": tree["ema"].get("decay"), "ema_updates": tree["ema"].get("num_updates")}
        if any(_is_fourier(name, raw) for name in raw):
            notes.append(
                "The EMA list has no Fourier frequencies W (they are not trained); they come from the raw weights."
            )
    else:
        notes.append("The file has no moving average of the weights; the raw ones are all there is.")
    return Checkpoint(
        "score_sde_torch", raw, ema, None, step if isinstance(step, int) else None, path, extra, tuple(notes)
    )


def _student(tree: Mapping[str, Any], path: Path) -> Checkpoint:
    """`config` holds the two numbers: how many steps the student takes, and their length in its first teacher's."""
    raw = {name.removeprefix(PARALLEL): tensor for name, tensor in _arrays(tree["G"], str(path)).items()}
    steps = {key: tree[key] for key in ("n_timesteps", "time_scale")}
    for key, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{path}: {key} is {value!r}, not a positive number.")
    note = "The file has one set of weights."
    return Checkpoint("distillation_torch", raw, None, steps, None, path, {}, (note,))


def _operator(tree: Mapping[str, Any], path: Path) -> Checkpoint:
    """Weights and their average under the same names; the step is in the file's name."""
    raw, ema = (_arrays(tree[key], str(path)) for key in ("model", "ema"))
    raw, ema = ({name.removeprefix(PARALLEL): tensor for name, tensor in part.items()} for part in (raw, ema))
    if {name: tensor.shape for name, tensor in raw.items()} != {name: tensor.shape for name, tensor in ema.items()}:
        raise ValueError(f"{path}: 'model' and 'ema' have different tensors; they are not of one network.")
    number = re.search(r"_(\d+)$", path.stem)
    return Checkpoint("dsno_torch", raw, ema, None, int(number[1]) if number else None, path, {}, ())


def _named_ema(shadow: Any, raw: Tensors, source: str) -> Tensors:
    names = [name for name in raw if not name.endswith(BUFFERS) and not _is_fourier(name, raw)]
    if not isinstance(shadow, list) or len(shadow) != len(names):
        count = len(shadow) if isinstance(shadow, list) else "no list of"
        raise ValueError(f"{source}: the EMA list has {count} tensors, the model {len(names)} trained ones.")
    trained: Tensors = {}
    for name, tensor in zip(names, shadow, strict=True):
        trained |= _arrays({name: tensor}, source)
        if trained[name].shape != raw[name].shape:
            raise ValueError(
                f"{source}: the EMA tensor in the place of {name!r} has shape {trained[name].shape}, the model "
                f"{raw[name].shape}; the list is in another order than the model."
            )
    return {name: trained.get(name, raw[name]) for name in raw}


def _is_fourier(name: str, raw: Tensors) -> bool:
    return name.endswith(".W") and raw[name].ndim == 1  # the W of a NIN layer has two axes


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _arrays(tensors: Mapping[str, Any], source: str) -> Tensors:
    return {str(name): to_numpy(tensor, str(name), source) for name, tensor in tensors.items()}
