"""Tiny latent-diffusion networks recorded by diffusers and transformers (tests/goldens/latent/README.md)."""

import base64
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import golden_folder

from benchmarks.peers.latent_goldens import drawn
from checkpoints import fitting, names

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def cases():
    return json.loads((golden_folder("latent") / "networks.json").read_text())


def config_of(case, **changes):
    return {"_class_name": cases()[case]["class"], **cases()[case]["config"], **changes}


def tensors_of(case):
    return {name: drawn(name, shape) for name, shape in cases()[case]["shapes"].items()}


def output_of(case, name):
    """Every second value in the order of the library's axes."""
    return np.frombuffer(base64.b64decode(cases()[case]["outputs"][name]), "<f4")


def params_of(expected, tensors, source="case"):
    shapes = fitting.shapes(expected)
    fitted = fitting.fit(names.flax_names_dotted(tensors, shapes), shapes, source)
    return jax.tree.map(jnp.asarray, fitted)


def drawn_image(name, *shape):
    """The input of this name in NHWC."""
    return jnp.asarray(np.moveaxis(drawn(name, shape), 1, -1))


def relative_error(ours, theirs):
    """Of an output [b, h, w, c] or [b, n, d] against the recorded values."""
    ours = np.moveaxis(np.asarray(ours), -1, 1) if np.ndim(ours) == 4 else np.asarray(ours)
    assert ours.dtype == np.float32
    assert len(ours.ravel()[::2]) == len(theirs)
    return np.abs(ours.ravel()[::2] - theirs).max() / np.abs(theirs).max()
