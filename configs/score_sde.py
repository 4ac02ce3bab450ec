"""Configs written for score_sde or PDS: recognised, translated to our layout, and run from their own files.

A foreign config is Python code and is run as such, with the right to do anything: read it first. It imports `torch`
(for the name of a device) and `configs.default_*` (of its own tree); neither has to be installed, stand-ins answer.
"""

import ast
import logging
import os
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base, methods, score_sde_defaults

# Where each key went. A key of theirs that has the same section and name here is taken over without being listed.
_RENAMED = {
    "training.sde": "sde.name",
    "training.continuous": "model.continuous",
    "training.n_iters": "training.num_steps",
    "training.log_freq": "training.log_every",
    "training.snapshot_freq": "training.sample_every",
    "training.snapshot_freq_for_preemption": "training.checkpoint_every",
    "model.sigma_min": "sde.sigma_min",
    "model.sigma_max": "sde.sigma_max",
    "model.beta_min": "sde.beta_min",
    "model.beta_max": "sde.beta_max",
    "model.num_scales": "sde.num_scales",
    "model.ema_rate": "training.ema_rate",
    "data.channels": "data.num_channels",
    "training.likelihood_weighting": "training.weighting",
}

# Keys without a counterpart whose published value is what this code does. Another value changes the network: an error.
_FIXED = {"model.attention_type": "ddpm", "model.conv_size": 3, "model.interpolation": "bilinear"}

# Keys without a counterpart that are left out silently at their published value, and listed at any other.
_USUAL = {"optim.optimizer": "Adam", "data.uniform_dequantization": False}

# Keys that name files, devices or the course of the published evaluation: nothing here depends on them.
_DROPPED = {
    "device",
    "data.dataset",
    "data.category",
    "data.tfrecords_path",
    "training.eval_freq",
    "training.snapshot_sampling",
    "eval.enable_sampling",
    "eval.enable_loss",
    "eval.enable_bpd",
    "eval.bpd_dataset",
    "eval.begin_ckpt",
    "eval.end_ckpt",
}

_VALUES: dict[str, dict] = {
    # Their "pc" with masks is PDS, and PDS without masks is the plain predictor-corrector.
    "sampling.method": {"pc": "pds"},
    "sampling.predictor": {"ancestral_sampling": "ancestral"},
    "training.likelihood_weighting": {False: "eps", True: "likelihood"},
}


def is_score_sde_layout(config: Mapping[str, Any]) -> bool:
    """True if the noise levels stand in `config.model`, as in score_sde, and there is no section `sde`."""
    return "sde" not in config and "num_scales" in config.get("model", {})


def translate(config: Mapping[str, Any]) -> ConfigDict:
    """A config in score_sde's layout (ConfigDict or nested dict) as one in ours.

    What only the weights' owner knows is filled in: VE networks predict the score, VP and sub-VP networks the noise.
    Keys without a meaning here are left out and listed in one warning. Raises ValueError when a key is missing that
    decides how the network runs, or when it asks for a network that does not exist here.
    """
    theirs = dict(_flatten(config.to_dict() if isinstance(config, ConfigDict) else config))
    for key in ("training.sde", "training.continuous", "model.name", "data.image_size"):
        if key not in theirs:
            raise ValueError(f"This config for score_sde lacks {key}; add it to the file (see configs/score_sde.py).")
    ours, ignored = base.get_config(), []
    for key, value in theirs.items():
        if value != _FIXED.get(key, value):
            raise ValueError(f"{key}={value!r} in a config for score_sde is not supported; only {_FIXED[key]!r} is.")
        section, _, name = _RENAMED.get(key, key).rpartition(".")
        if f"{section}.{name}" in _KNOWN:
            _assign(ours[section] if section else ours, name, key, value)
        elif key not in _FIXED and key not in _DROPPED and value != _USUAL.get(key, object()):
            ignored.append(key)
    ours.model.predicts = "score" if ours.sde.name == "vesde" else "eps"
    # What fitted into the memory of the published program at once is the best guess for one network call.
    ours.sampling.microbatch = min(ours.sampling.microbatch, ours.eval.batch_size)
    if ignored:
        logging.warning("Not taken over from a config for score_sde: %s.", ", ".join(sorted(ignored)))
    return ours


def is_foreign(path: str | Path) -> bool:
    """True if the file was written for score_sde or PDS: it sets `training.sde` or imports their defaults or torch.

    The file is parsed, not run. Raises FileNotFoundError if there is none, SyntaxError if it is not Python.
    """
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import) and any(alias.name == "torch" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("configs.default_"):
            return True
        if isinstance(node, ast.Attribute) and node.attr == "sde":
            section = node.value
            if getattr(section, "attr", getattr(section, "id", "")) == "training":
                return True
    return False


def load_foreign(path: str | Path, method: str = "") -> ConfigDict:
    """Runs a config file written for score_sde or PDS and returns its config in our layout, edited for `method`.

    The file is executed as it is. Its `torch` is a stand-in that knows `device` and `cuda.is_available` (which says
    no); its `configs` is the tree it lies in, or, for a file without one, the three published default modules. What it
    imported is forgotten afterwards. Raises FileNotFoundError, or ValueError if it has no `get_config()` in
    score_sde's layout.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"No config file {path}; --config names a Python file with a function get_config().")
    namespace = {"__name__": path.stem, "__file__": str(path)}
    with _stand_ins(_own_tree(path)):
        try:
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
        except ImportError as error:
            raise ValueError(
                f"{path} cannot be run: {error}. Only torch.device, torch.cuda.is_available and configs.default_* have "
                "stand-ins; leave the file in its own tree (below a folder configs/) if it imports other files."
            ) from error
        if not callable(get := namespace.get("get_config")):
            raise ValueError(f"{path} has no function get_config(); it is not a config file.")
        config = get()
    if not is_score_sde_layout(config):
        raise ValueError(f"{path} holds no config in score_sde's layout: it has no model.num_scales, or a section sde.")
    return methods.apply(translate(config), method)


def get_config(argument: str) -> ConfigDict:
    """`--config configs/score_sde.py:FILE` or `...:FILE:method` loads a foreign file through the ordinary flag."""
    return load_foreign(*_path_and_method(argument))


def redirect(arguments: list[str]) -> list[str]:
    """A command line with a foreign `--config FILE[:method]` sent through `get_config` above; others as they are.

    The flag would run the file itself, without stand-ins. This way overrides (`--config.key=value`) work on it too.
    """
    redirected, follows_flag = [], False
    for word in arguments:
        flag, equals, value = word.partition("=")
        is_flag = flag in ("--config", "-config")
        if is_flag and equals:
            word = f"{flag}={_through_here(value)}"
        elif follows_flag:
            word = _through_here(word)
        follows_flag = is_flag and not equals
        redirected.append(word)
    return redirected


def _through_here(argument: str) -> str:
    path, _ = _path_and_method(argument)
    # Relative: the flag takes what follows the first colon for an argument, and on Windows an absolute path has one.
    here = os.path.relpath(__file__)
    return f"{here}:{argument}" if Path(path).is_file() and is_foreign(path) else argument


def _path_and_method(argument: str) -> tuple[str, str]:
    # The last colon only: on Windows a path has one of its own.
    path, _, method = argument.rpartition(":")
    return (path, method) if method in methods.METHODS else (argument, "")


def _assign(section: ConfigDict, name: str, key: str, value: Any) -> None:
    value = tuple(value) if isinstance(value, list) else value
    try:
        section[name] = _VALUES.get(key, {}).get(value, value)
    except TypeError:
        kind = type(section[name]).__name__
        raise ValueError(f"{key}={value!r} in a config for score_sde should be of type {kind}.") from None


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# "section.name" of every key of ours; ".name" at the top.
_KNOWN = {key if "." in key else f".{key}" for key, _ in _flatten(base.get_config().to_dict())}


def _own_tree(path: Path) -> Path | None:
    """The nearest `configs` folder above the file that holds `default_*` modules."""
    folders = (parent for parent in path.parents if parent.name == "configs")
    return next((folder for folder in folders if any(folder.glob("default_*.py"))), None)


@contextmanager
def _stand_ins(tree: Path | None) -> Iterator[None]:
    """Puts stand-ins for `torch` and `configs` into sys.modules, and everything back as it was afterwards."""

    def is_ours(name: str) -> bool:
        return name.split(".")[0] in ("torch", "configs")

    saved = {name: module for name, module in sys.modules.items() if is_ours(name)}
    for name in saved:
        del sys.modules[name]
    sys.modules.update(_stand_in_torch())
    sys.modules.update(_stand_in_configs(tree))
    try:
        yield
    finally:
        for name in [name for name in sys.modules if is_ours(name)]:
            del sys.modules[name]
        sys.modules.update(saved)


def _stand_in_torch() -> dict[str, types.ModuleType]:
    torch, cuda = types.ModuleType("torch"), types.ModuleType("torch.cuda")
    vars(torch).update(device=str, cuda=cuda)
    vars(cuda).update(is_available=lambda: False)
    return {"torch": torch, "torch.cuda": cuda}


def _stand_in_configs(tree: Path | None) -> dict[str, types.ModuleType]:
    package = types.ModuleType("configs")
    package.__path__ = [] if tree is None else [str(tree)]
    modules = {"configs": package}
    if tree is None:
        for name in score_sde_defaults.MODULES:
            module = types.ModuleType(f"configs.{name}")
            defaults = score_sde_defaults.default_config(name)
            vars(module).update(get_default_configs=lambda defaults=defaults: ConfigDict(defaults))
            vars(package)[name] = module
            modules[f"configs.{name}"] = module
    return modules
