"""From config.eval.detector, a file of Inception weights, to a `Detector`: images in, features and logits out."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

import checkpoints
from builders import processes
from checkpoints import fitting, names
from metrics.inputs import Features, Images
from models import inception
from models.inception_input import INPUTS, prepare

KEY = "config.eval.detector"
# The first digits of sha256, by which each program names its file; others are somebody's own weights.
PUBLISHED = {"pytorch_fid": ("6726825d",), "torchvision": ("0cc3c7bd", "1a9a5a14")}
# What a weight file has besides parameters that are used.
_BUFFERS = (*names.BUFFERS, "num_batches_tracked")
_TRAINING_ONLY = "AuxLogits."
_REMEDY = (
    "Give the weights of the 2015 Inception graph as pytorch-fid has them (pt_inception-2015-12-05-6726825d.pth), or "
    "torchvision's (inception_v3_google-0cc3c7bd.pth), which measure something else."
)


@dataclasses.dataclass(frozen=True)
class Detector:
    """An Inception network with its weights, and how it is shown images."""

    kind: str  # of inception.VARIANTS
    input: str  # of models.inception_input.INPUTS
    params: Any
    sha256: str  # of the weight file

    @property
    def published(self) -> bool:
        return self.sha256.startswith(PUBLISHED[self.kind])

    def __call__(
        self, images: Images, advance: Callable[[int], object] = lambda _: None, per_device: int = 16
    ) -> tuple[Features, np.ndarray]:
        """Features [n, 2048] and logits [n, classes], float32, of uint8 images [n, h, w, c]; n network calls.

        Logits of the 2015 graph come without their bias, as programs that compute its Inception score have them.
        `advance` is told how many images are done. Of several processes each shows its share of the images to the
        network, on all its devices, and all return the whole. Raises ValueError for values that are not finite.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(f"A detector takes uint8 images [n, h, w, 1 or 3], got {images.dtype} {images.shape}.")
        count = len(images)
        own = images[jax.process_index() :: jax.process_count()]  # `processes.share`, without a copy
        images = own if len(own) else images[:1]  # one that has none joins in all the same
        devices = jax.local_devices()
        batch = per_device * len(devices)
        mesh = jax.make_mesh((len(devices),), ("images",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
        spread = NamedSharding(mesh, PartitionSpec("images"))
        params = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            padded = np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0), (0, 0)])
            found = _apply(self.kind, self.input, params, jax.device_put(padded, spread))
            parts.append(jax.tree.map(np.asarray, found))
            advance(len(part))
        found = (np.concatenate(leaves)[: len(images)] for leaves in zip(*parts, strict=True))
        features, logits = (processes.collect(rows, count) for rows in found)
        if not (np.isfinite(features).all() and np.isfinite(logits).all()):
            raise ValueError(f"{KEY}: the network's features are not finite; the weight file is damaged. {_REMEDY}")
        return features, logits


@functools.partial(jax.jit, static_argnames=("kind", "input"))
def _apply(kind: str, input: str, params: Any, images: jax.Array) -> inception.Outputs:
    x = prepare(images, input, inception.SIDE)
    with jax.default_matmul_precision("highest"):  # also on GPUs: features in TF32 move distances
        found = inception.InceptionV3(kind).apply({"params": params}, x)
    assert isinstance(found, inception.Outputs)
    return found._replace(logits=found.logits - params["fc"]["bias"][None]) if kind == "pytorch_fid" else found


@functools.cache
def param_shapes(kind: str) -> fitting.Shapes:
    """Of every parameter, by path; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
    return fitting.shapes(jax.eval_shape(inception.InceptionV3(kind).init, jax.random.key(0), x)["params"])


def load_detector(path: str | Path, kind: str = "", input: str = "") -> Detector:
    """Reads config.eval.detector.

    Args:
      path: torch (`.pth`, `.pt`) or safetensors file of a state dict; nothing in it is executed.
      kind: config.eval.detector_kind; "" tells by the number of classes.
      input: config.eval.detector_input; "" is "pytorch_fid".

    Raises FileNotFoundError, or ValueError that lists missing, unexpected and misshaped tensors or unknown words.
    """
    if kind not in ("", *inception.VARIANTS):
        raise ValueError(f"config.eval.detector_kind={kind!r} is unknown; choose one of {inception.VARIANTS}.")
    if input not in ("", *INPUTS):
        raise ValueError(f"config.eval.detector_input={input!r} is unknown; choose one of {INPUTS}.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{KEY}={str(path)!r} is no file. {_REMEDY}")
    try:
        stored = checkpoints.read(path)
    except ValueError as error:
        raise ValueError(f"{KEY}: {error} {_REMEDY}") from error
    found = _kind_of(stored.raw)
    if kind and found and found != kind:
        raise ValueError(
            f"config.eval.detector_kind={kind!r}, but {path} holds the network of {found!r} "
            f"({stored.raw['fc.weight'].shape[0]} classes). Leave the key empty, or name another file. {_REMEDY}"
        )
    kind = kind or found or inception.VARIANTS[0]
    expected = param_shapes(kind)
    used = {name: tensor for name, tensor in stored.raw.items() if not name.startswith(_TRAINING_ONLY)}
    tensors = names.flax_names_dotted(used, expected, _BUFFERS)
    differences = fitting.compare(tensors, expected)
    if not differences.fits():
        raise ValueError(f"{KEY}: {path} does not hold {kind!r}'s Inception v3:\n{differences.report()}\n{_REMEDY}")
    params = jax.tree.map(jnp.asarray, fitting.fit(tensors, expected, path))
    detector = Detector(kind, input or INPUTS[0], params, stored.sha256())
    if not detector.published:
        logging.warning(
            "%s is not the published file of %s (its sha256 begins with %s, not %s): distances by it compare with each "
            "other only.",
            path,
            kind,
            detector.sha256[:8],
            " or ".join(PUBLISHED[kind]),
        )
    return detector


def _kind_of(tensors: checkpoints.base.Tensors) -> str | None:
    classes = {1008: "pytorch_fid", 1000: "torchvision"}
    head = tensors.get("fc.weight")
    return classes.get(head.shape[0]) if head is not None and head.ndim == 2 else None
