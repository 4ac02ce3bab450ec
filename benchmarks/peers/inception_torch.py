"""Inception v3 as pytorch-fid and torchvision have it, with random weights: what `models.inception` is held against.

    python -m benchmarks.peers.inception_torch --out tests/goldens/metrics/inception.npz

Needs torch, torchvision and pytorch-fid, installed with `--no-deps` for the last two; no weights are downloaded. The
weights follow from the names of the tensors (`benchmarks.random_weights.random_state_dict`), the images from a seed.
"""

import argparse
import hashlib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.random_weights import random_state_dict

SIDE = 107  # the smallest at which the last maps have more than one pixel
EVERY = 32  # features and logits that are kept


def import_torchvision() -> Any:
    """torchvision; one built for another torch is loaded with the operators that it lacks declared, not defined."""
    try:
        return importlib.import_module("torchvision")
    except (RuntimeError, OSError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        found: Any = importlib.import_module("torchvision")
        found.declared = library  # its operators would go with it
        return found


def create(kind: str) -> torch.nn.Module:
    """The network in evaluation with `random_state_dict`, of "torchvision" or "pytorch_fid"."""
    torchvision = import_torchvision()
    if kind == "torchvision":
        network = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=False)
    else:
        fid = importlib.import_module("pytorch_fid.inception")
        network = torchvision.models.inception_v3(
            weights=None, init_weights=False, num_classes=1008, aux_logits=False, transform_input=False
        )
        network.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
        network.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
        network.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
        network.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
        network.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
        network.Mixed_7b = fid.FIDInceptionE_1(1280)
        network.Mixed_7c = fid.FIDInceptionE_2(2048)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if tensor.ndim}
    weights = {name: torch.from_numpy(value) for name, value in random_state_dict(shapes).items()}
    network.load_state_dict(weights, strict=False)
    return network.eval()


def describe(names_and_shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """sha256 of the names and shapes of all tensors that an evaluation uses."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in names_and_shapes if not name.startswith("AuxLogits"))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def outputs(network: torch.nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features [b, 2048] and logits [b, classes] of x [b, h, w, 3]."""
    seen: dict[str, torch.Tensor] = {}
    hook = network.avgpool.register_forward_hook(lambda _module, _inputs, found: seen.update(features=found.flatten(1)))
    with torch.no_grad():
        logits = network(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous())
    hook.remove()
    return seen["features"].numpy(), logits.numpy()


def main(path: Path) -> None:
    arrays: dict[str, Any] = {}
    x = np.random.default_rng(0).uniform(-1, 1, (1, SIDE, SIDE, 3)).astype(np.float32)
    small = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    shown = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255
    shown = 2 * torch.nn.functional.interpolate(shown, (299, 299), mode="bilinear", align_corners=False) - 1
    for kind in ("pytorch_fid", "torchvision"):
        network = create(kind)
        tensors = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items() if tensor.ndim]
        arrays[f"{kind}_names"] = np.array(describe(tensors))
        for size, images in (("small", x), ("full", shown.permute(0, 2, 3, 1).numpy())):
            features, logits = outputs(network, np.ascontiguousarray(images))
            arrays[f"{kind}_{size}_features"] = features[:, ::EVERY]
            arrays[f"{kind}_{size}_logits"] = logits[:, ::EVERY]
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args().out)
