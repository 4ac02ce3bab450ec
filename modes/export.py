"""--mode=export: the sampler of a config, with its weights, as one file that any JAX program can call."""

import importlib.util
import json
import sys

import jax
from absl import logging

from builders.exported import PLATFORMS, create_program
from builders.samplers import create_sampler
from modes.request import Request, open_model, workdir_of
from modes.sample import plan
from reports.atomic import write_atomically, write_text

FORMAT = "exported-sampler"
VERSION = 1


def run(request: Request) -> None:
    """Writes W/export/sampler.jax, and beside it sampler.json, which says what it is and how it is called.

    Needs the extra "export". Costs tracing, no network call.
    """
    if importlib.util.find_spec("flatbuffers") is None:  # jax.export would say so after all else is done
        raise ImportError('--mode=export needs flatbuffers: pip install ".[export]".')
    model = open_model(request)
    sampler = create_sampler(model, model.config)
    logging.info("%s", plan(model, sampler, 1))
    if request.dry_run:
        return
    folder = workdir_of(request) / "export"
    folder.mkdir(parents=True, exist_ok=True)
    exported = create_program(model, sampler, model.config)
    content = bytes(exported.serialize())
    about = {
        "format": FORMAT,
        "version": VERSION,
        "call": "jax.export.deserialize(bytearray(content)).call(seed, indices)",
        "seed": "uint32 []",
        "indices": "uint32 [b]",
        "returns": f"float32 [b, {', '.join(map(str, model.image_shape))}] in [0, 1]",
        "method": model.config.sampling.method,
        "calls": sampler.nfe,
        "platforms": PLATFORMS,
        "weights": model.weights_hash,
        "jax": jax.__version__,
        "command": sys.argv,
    }
    write_atomically(folder / "sampler.jax", lambda file: file.write(content))
    write_text(folder / "sampler.json", json.dumps(about, indent=1))
    logging.info("%s: %.1f MB, for %s.", folder / "sampler.jax", len(content) / 1e6, ", ".join(PLATFORMS))
