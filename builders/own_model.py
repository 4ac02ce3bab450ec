"""Networks of one's own: a function under its conventions, the file that makes it, and the way out to k-diffusion.

`Model.from_function` in `builders.model` is the public face; docs/your_own_network.md shows a whole file.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sde_lib
from array_types import Image, PerImage
from configs import own
from models.denoiser import TOLD, Denoiser

PREDICTS = ("score", "eps", "x0", "v", "denoised")
PROTOCOL = ("alpha", "sigma", "noise_scale", "time", "drift", "diffusion_squared", "levels")


def create_denoiser(
    fn: Callable[..., Image], params: Any, sde: sde_lib.GaussianSDE, predicts: str, told: str
) -> Denoiser:
    """`fn(params, x, labels)` as a denoiser; its arguments, those of `Model.from_function`, are checked here."""
    if predicts not in PREDICTS:
        raise ValueError(f"predicts={predicts!r} is unknown; a network predicts one of {PREDICTS}.")
    missing = [name for name in PROTOCOL if not hasattr(sde, name)]
    if missing:
        raise ValueError(
            f"sde={sde!r} lacks {', '.join(missing)}: give a process of sde_lib, such as sde_lib.VPSDE(), or an object "
            "with the methods of sde_lib.GaussianSDE."
        )
    return Denoiser(
        jax.tree.map(jnp.asarray, params), fn, sde, "x0" if predicts == "denoised" else predicts, _told(told, sde)
    )


def _told(told: str, sde: sde_lib.GaussianSDE) -> str:
    if told != "label":
        if told not in TOLD:
            raise ValueError(f"told={told!r} is unknown; a network is told one of {('label', *TOLD)}.")
        return told
    if isinstance(sde, sde_lib.DiscreteVPSDE):
        return "index"
    if isinstance(sde, sde_lib.VESDE):
        return "level"
    if isinstance(sde, sde_lib.VPSDE):
        return "fractional_level"
    raise ValueError(
        f"told='label' means the index of a noise level, and {type(sde).__name__} has none; choose told='t' or "
        "'sigma', or a process made of levels (sde_lib.DiscreteVPSDE)."
    )


def create_config(
    sde: sde_lib.GaussianSDE,
    predicts: str,
    data_range: Sequence[float],
    shape: Sequence[int],
) -> ConfigDict:
    """configs/own.py with the facts of the network: its process, its images and their range."""
    if len(shape) != 3 or shape[0] != shape[1] or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)} must be (h, w, c) of one image, h equal to w.")
    low, high = (float(end) for end in data_range) if len(data_range) == 2 else (0.0, 0.0)
    if not low < high:
        raise ValueError(f"data_range={tuple(data_range)} must be (low, high), the values of black and white.")
    config = own.get_config()
    config.sde.name = {kind: name for name, kind in sde_lib.SDES.items()}.get(type(sde), "own")
    for key in set(config.sde) - {"name"}:
        if hasattr(sde, key):
            config.sde[key] = type(config.sde[key])(getattr(sde, key))
    config.model.predicts = "x0" if predicts == "denoised" else predicts
    config.data.update(image_size=int(shape[0]), num_channels=int(shape[2]), centered=(low, high) == (-1.0, 1.0))
    if (low, high) not in ((0.0, 1.0), (-1.0, 1.0)):
        config.data.range = (low, high)
    return config


def check_output(denoiser: Denoiser, shape: Sequence[int]) -> None:
    """Raises ValueError if the function cannot be traced, or returns anything but an image for an image."""
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.float32)
    try:
        out = jax.eval_shape(denoiser.network, denoiser.params, x, labels)
    except Exception as error:  # the user's function may raise anything
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        raise ValueError(
            f"The network does not take x of shape {x.shape} (NHWC) and labels of shape {labels.shape}, both float32, "
            f"or is not written in jax.numpy ({reason}). It is called as fn(params, x, labels)."
        ) from error
    found = getattr(out, "shape", type(out).__name__)
    if not isinstance(found, tuple) or len(found) != 4 or found[:3] != x.shape[:3] or found[3] < x.shape[3]:
        raise ValueError(
            f"The network returns {found} for x of shape {x.shape}; it must return an array of that shape."
        )


def digest(params: Any, *files: Path) -> str:
    """SHA-256 of the leaves of a tree, and of files."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def load_function(spec: str, key: str) -> Callable[..., Any]:
    """The function that "path/my_net.py:make_model" names. The file is run; it may import its neighbours.

    `key`: where the name came from, for messages. Raises ValueError or FileNotFoundError.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"{key}={spec!r} must be a file and a function in it, such as path/my_net.py:make_model.")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{key}={spec!r}: there is no file {path}.")
    module_spec = importlib.util.spec_from_file_location(f"own_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{key}={spec!r}: {path} is no Python file.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses and pickle look their module up there
    with _importing_from(file.resolve().parent):
        module_spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{key}={spec!r}: {path} has no function {name}.")
    return function


@contextmanager
def _importing_from(folder: Path):
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def merge(config: ConfigDict, facts: ConfigDict) -> ConfigDict:
    """`config` with what the network itself says: its process, what it predicts, its images."""
    merged = config.copy_and_resolve_references()
    merged.sde.update(facts.sde)
    merged.model.update(name="own", predicts=facts.model.predicts)
    keys = ("image_size", "num_channels", "centered", "range")
    merged.data.update({key: facts.data[key] for key in keys})
    return merged


def as_k_diffusion(model: Any) -> Callable[[Image, PerImage], Image]:
    """`(x, sigma) -> denoised` for samplers written for k-diffusion: x = x0 + sigma eps, [b, h, w, c], sigma [b] or ().

    For any model or denoiser here, whatever its process: x is in its data range and sigma in units of it. 1 NFE.
    """

    def denoised(x: Image, sigma: PerImage) -> Image:
        return model.denoise(x, jnp.asarray(sigma))

    return denoised
