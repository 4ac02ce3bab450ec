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
    # A latent model brings its codec, and what reads its prompts or classes.
    beside = {"vae": model.codec, "text_encoder": model.text}
    parts = {name: jax.tree.map(np.asarray, part.params) for name, part in beside.items() if part is not None}
    model.config.latent.checkpoint = ""
    params = jax.tree.map(np.asarray, model.denoiser.params)
    native.write(request.output, params, json.loads(model.config.to_json_best_effort()), stored, parts=parts)
    logging.info("Wrote %s.", request.output)
