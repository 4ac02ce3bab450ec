"""The public face: load a checkpoint, sample it, or run a mode of the command line.

    model = run_lib.load("configs/ve/demo.py")
    images = run_lib.sample(model, {"method": "unipc", "num_steps": 10}, seeds=range(16)).images

`builders/` turns configs into objects, `modes/` holds what the command line runs; `main.py` and users call this file.
"""

import importlib
import os
import sys
from collections.abc import Callable

from builders.adaptive import decode, encode
from builders.config import load_config_file, resolve_config
from builders.devices import configure_jax
from builders.draw import sample, sample_groups, to_pixels
from builders.model import Model, load
from builders.own_model import as_k_diffusion
from builders.parameters import check_mode
from builders.processes import join, wait
from builders.samplers import create_sampler
from modes.request import Request

__all__ = [
    "MODES",
    "Model",
    "Request",
    "as_k_diffusion",
    "configure_jax",
    "create_sampler",
    "decode",
    "encode",
    "load",
    "load_config_file",
    "resolve_config",
    "run",
    "sample",
    "sample_groups",
    "to_pixels",
]


def _mode(name: str) -> Callable[[Request], None]:
    """`modes.<name>.run`, imported when it is called: a run pays for no mode but its own."""

    def run(request: Request) -> None:
        importlib.import_module(f"modes.{name}").run(request)

    return run


MODES = {
    name: _mode(name)
    for name in (
        "sample",
        "train",
        "masks",
        "prepare",
        "pairs",
        "convert",
        "inspect",
        "encode",
        "export",
        "evaluate",
        "likelihood",
        "compare",
        "report",
        "sweep",
    )
}
SHARED = ("sample", "pairs", "train", "evaluate")  # modes whose work several processes share


def run(mode: str, request: Request) -> None:
    """What `main.py` calls: JAX set up, then the mode; a user's mistake is one line, not a traceback."""
    config = request.config
    try:
        configure_jax(config.precision if config is not None and "precision" in config else "float32")
        check_mode(config, mode)
        if request.cluster is not None:
            if mode not in SHARED:
                raise ValueError(f"--distributed: --mode={mode} runs in one process; several share only {SHARED}.")
            join(request.cluster)
        MODES[mode](request)
        if request.cluster is not None:
            wait("end")  # or those that have no more to do would give the first up while it packs the files
    except (ValueError, FileNotFoundError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("DEBUG"):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
