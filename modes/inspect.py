"""--mode=inspect: what is in a weight file, and whether the network of a config fits it."""

import checkpoints
from builders.config import resolve_config
from builders.model import find_checkpoint, named_tensors
from checkpoints import fitting
from checkpoints import inspect as inspection
from configs import base as base_config
from modes.request import Request


def run(request: Request) -> None:
    """Says what is in a weight file and, with a config, whether its network fits."""
    config = None if request.config is None else resolve_config(request.config)
    stored = checkpoints.read(find_checkpoint(config or base_config.get_config(), request.workdir, request.checkpoint))
    print(inspection.describe(stored))
    if config is None and stored.config is not None and stored.format in ("native", "edm_pickle", "diffusers"):
        config = resolve_config(None, stored)
    if config is not None:
        differences = fitting.compare(*named_tensors(stored, config))
        verdict = "fits." if differences.fits() else f"does not fit:\n{differences.report()}"
        print(f"\nThe network of the config {verdict}")
