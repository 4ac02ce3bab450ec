"""--mode=convert: any readable checkpoint as this toolkit's safetensors."""

import json
from pathlib import Path

import jax
import numpy as np
from absl import logging

from checkpoints import native
from modes.request import Request, open_model


def run(request: Request) -> None:
    """Writes the weights of any readable checkpoint as this toolkit's safetensors, with their config inside."""
    if not request.output:
        raise ValueError("--output is missing: name the .safetensors file to write.")
    model = open_model(request)
    stored = {"source": Path(request.checkpoint or model.config.checkpoint).name, "source_sha256": model.weights_hash}
    params = jax.tree.map(np.asarray, model.denoiser.params)
    native.write(request.output, params, json.loads(model.config.to_json_best_effort()), stored)
    logging.info("Wrote %s.", request.output)
