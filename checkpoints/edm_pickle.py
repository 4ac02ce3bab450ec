"""EDM's `.pkl` networks, read without EDM, without PyTorch and without running what is inside.

EDM pickles every network class as one call of `torch_utils.persistence._reconstruct_persistent_obj` with a dict: the
source text of the defining module (which EDM executes on loading; here it is not even looked at), the `class_name`, and
the `state` of the object. The state has torch's `_parameters`, `_buffers` and `_modules`, and `_init_kwargs`, the
arguments that the class was called with, so the architecture needs no config file. Each tensor's storage is a byte
string that holds a legacy torch stream.
"""

from pathlib import Path
from typing import Any

from checkpoints import pickle_data
from checkpoints.base import Checkpoint, Tensors, map_file
from checkpoints.pickle_data import Cursor, Instance
from checkpoints.torch_pickle import ALLOWED, Tensor, load_legacy, to_numpy

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_PLAIN = bool | int | float | str


def read(path: Path) -> Checkpoint:
    """The network under the key "ema", by dotted module path; the loss and the augmentation are left alone.

    `config` has `class_name` (the wrapper: EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond), its `init_kwargs`, its
    `attributes` (numbers such as `sigma_data`, defaults included), and the same three of the U-Net under `model`.

    Raises: RefusedPickle (a ValueError) for any name that EDM's networks do not use; ValueError for damage.
    """
    source = str(path)
    allowed = ALLOWED | {
        PERSISTENT: lambda meta: Instance(PERSISTENT, (meta,)),
        "torch.storage._load_from_bytes": lambda data: load_legacy(data, source),
        "torch.nn.modules.container.ModuleDict": lambda *args: Instance("ModuleDict", args),
        "dnnlib.util.EasyDict": pickle_data.plain_dict,
    }
    tree = pickle_data.read(Cursor(map_file(path)), allowed, source)
    network = tree.get("ema") if isinstance(tree, dict) else None
    if not isinstance(network, Instance) or network.name != PERSISTENT:
        found = sorted(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise ValueError(f"{source} is a pickle without an EDM network under the key 'ema' (it holds {found}).")
    raw = _tensors(network, "", source, set())
    if not raw:
        raise ValueError(f"{source}: the EDM network under the key 'ema' has no tensors.")
    note = "The file has one set of weights, the moving average."
    return Checkpoint("edm_pickle", raw, None, _architecture(network), None, path, {}, (note,))


def _state(module: Any, source: str) -> dict[str, Any]:
    """The instance dictionary of a persistent object or of a plain torch container."""
    state = module.state if isinstance(module, Instance) else None
    if isinstance(module, Instance) and module.name == PERSISTENT:
        state = module.args[0].get("state") if isinstance(module.args[0], dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{source} is damaged: one of its modules has no state.")
    return state


def _tensors(module: Any, prefix: str, source: str, seen: set[int]) -> Tensors:
    if id(module) in seen or prefix.count(".") > 32:
        raise ValueError(f"{source}: module {prefix!r} repeats or nests without end; the file is damaged or hostile.")
    seen.add(id(module))
    state, flat = _state(module, source), {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _children(state, kind, source):
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{source} is damaged: {prefix}{name} is no tensor.")
            flat[prefix + name] = to_numpy(tensor, prefix + name, source)
    for name, child in _children(state, "_modules", source):
        flat |= _tensors(child, f"{prefix}{name}.", source, seen)
    return flat


def _children(state: dict[str, Any], kind: str, source: str) -> list[tuple[str, Any]]:
    children = state.get(kind, {})
    if not isinstance(children, dict) or not all(isinstance(name, str) for name in children):
        raise ValueError(f"{source} is damaged: the {kind} of a module are no dict.")
    return [(name, child) for name, child in children.items() if child is not None]


def _architecture(network: Instance) -> dict[str, Any]:
    meta, state = network.args[0], network.args[0]["state"]
    config = {
        "class_name": meta.get("class_name"),
        "init_kwargs": {name: _plain(value) for name, value in state.get("_init_kwargs", {}).items()},
        "attributes": {k: v for k, v in state.items() if not k.startswith("_") and isinstance(v, _PLAIN)},
    }
    model = state.get("_modules", {}).get("model")
    if isinstance(model, Instance) and model.name == PERSISTENT:
        config["model"] = _architecture(model)
    return config


def _plain(value: Any) -> Any:
    """What JSON can hold; anything else that an argument was (a tensor, a class) becomes its type's name."""
    if isinstance(value, list | tuple):
        return [item if item is None or isinstance(item, _PLAIN) else f"<{type(item).__name__}>" for item in value]
    return value if value is None or isinstance(value, _PLAIN) else f"<{type(value).__name__}>"
