"""Runs commands of the pages with --dry_run, all in one process; started by test_docs_commands.py.

Standard input: a JSON list of command lines. Standard output: a JSON list of what each one said, "" where it ran.
Weights are not read: a network is made from its config and never called. Modes that have no dry run are not entered;
their flags, their config and its keys are checked all the same.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.testing import flagsaver

import builders.distillation
import builders.grids
import builders.guidance
import builders.model
import main
import modes.estimate
import run_lib
from builders import students
from builders.classifier import create_classifier, read_classifier
from builders.config import apply_overrides, resolve_config
from builders.model import Model, create_denoiser
from builders.prompts import TextNetwork
from models.latent import Codec
from modes import compare, pairs, request, sample, train, train_ld3
from sampling import time_grids

ROOT = Path(__file__).parent.parent
NOTHING = {"none": np.zeros(1, np.float32)}  # parameters of networks that are not called


def load(config: Any = None, checkpoint: str = "", ema: bool | None = None, workdir: Any = None) -> Model:
    """The model of a config; a file that carries its own is one of CIFAR-10 with classes under EDM's scaling."""
    full = resolve_config(config or run_lib.load_config_file(ROOT / "configs" / "ve" / "cifar10_ncsnpp_continuous.py"))
    if full.model.factory or full.model.name == "analytic":  # no weights to be read
        return builders.model.load(full)
    if checkpoint.startswith("sd-") and config is None:
        full = resolve_config(run_lib.load_config_file(ROOT / "configs" / "latent" / "sd15.py"))
    elif config is None:
        full.model.update(name="song_unet", scaling="edm", predicts="x0", continuous=True)
        full.data.update(num_classes=10, centered=True)
    if full.sampling.method in ("distilled", "consistency", "dsno") and not checkpoint:
        return run_lib.load(full)  # shipped, with the steps it takes in its file
    if "checkpoints/dsno" in checkpoint:
        return run_lib.load(checkpoint="demo/dsno.safetensors")
    if "solver-model" in checkpoint:
        students.become_operator(full, (0.5625, 0.25, 0.0625, 0.0))
        return Model(create_denoiser(full, NOTHING), full, "0" * 64)
    if "student" in checkpoint or "consistency" in checkpoint:
        return _student(full, "consistency" if "consistency" in checkpoint else "distilled")
    return Model(create_denoiser(full, NOTHING), full, "0" * 64, *_latent_parts(full))


class Unread(TextNetwork):
    """Of a text network that is not called."""

    def contexts(self, given: Any) -> np.ndarray:
        return np.zeros((len(given), 77, 768), np.float32)


def _latent_parts(config: Any) -> tuple[Any, Any]:
    latent = config.latent
    if latent.kind == "none":
        return None, None
    factor = 2 ** (len(latent.block_out_channels) - 1)
    codec = Codec(NOTHING, lambda _, x: x[:, ::factor, ::factor, :1].repeat(config.data.num_channels, -1), None, factor)
    return codec, None if latent.text.kind == "none" else Unread(latent.text.kind, None, NOTHING)


def _student(config: Any, method: str) -> Model:
    config.student.update(method=method, num_steps=4, grid="50.0,5.0,1.0,0.2,0.0", s_min=0.01)
    config.sampling.update(method=method, num_steps=4 if method == "distilled" else 1, grid=config.student.grid)
    config.data.num_classes = 0
    return Model(create_denoiser(config, NOTHING), config, "0" * 64)


def load_classifier(path: str, model: Model) -> tuple[Any, int]:
    config, params = read_classifier(ROOT / "demo" / "flowers32_classifier.safetensors")
    return create_classifier(config.classifier, params, model.sde, model.config.data.centered), 1000


def searched(model: Model, config: Any, denoiser: Any, steps: int, s_max: float, s_min: float) -> time_grids.TimeGrid:
    """For the grid "gits", which would run the network."""
    return time_grids.make("edm", steps, s_max, s_min, model.sde)


def check_only(asked: request.Request) -> None:
    """For a mode without a dry run: what it was asked for has a meaning."""
    if asked.config is not None:
        apply_overrides(resolve_config(asked.config), asked.overrides)


def check_training(asked: request.Request) -> None:
    config = resolve_config(asked.config)
    apply_overrides(config, asked.overrides)
    if config.training.method in train.PLANS:
        train.run(asked)
    elif config.training.method not in train.TRAINERS:
        raise ValueError(f"no trainer {config.training.method}")


def run(line: str) -> str:
    words = shlex.split(line)
    if words[:2] != ["python", "main.py"]:
        return f"not a command of main.py: {line}"
    sys.argv = ["main.py", *words[2:], "--dry_run"]  # where ml_collections looks for keys
    with flagsaver.flagsaver():
        try:
            main.main(main.parse(sys.argv))
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
    return ""


def prepare() -> None:
    patch = pytest.MonkeyPatch()  # for good: this process does nothing else
    patch.setattr(request, "load", load)
    patch.setattr(builders.guidance, "load_classifier", load_classifier)
    patch.setattr(builders.grids, "_searched", searched)
    for mode in (sample, pairs):
        patch.setattr(mode, "estimate", lambda *_: "no estimate")
    patch.setattr(modes.estimate, "training", lambda *_: "no estimate")
    patch.setattr(builders.distillation, "load", load)
    patch.setattr(compare, "create_plan", lambda *_: compare.Plan({}, 16, 0.0))
    patch.setattr(compare, "call_seconds", lambda *_: 1e-3)
    patch.setattr(train_ld3, "load", lambda config, *_, **__: load(config))
    patch.setattr(run_lib, "configure_jax", lambda *_: None)
    for mode in ("convert", "encode", "inspect", "masks", "prepare", "report"):
        patch.setitem(run_lib.MODES, mode, check_only)
    patch.setitem(run_lib.MODES, "train", check_training)


if __name__ == "__main__":
    prepare()
    json.dump([run(line) for line in json.load(sys.stdin)], sys.stdout)
