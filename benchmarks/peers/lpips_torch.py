"""LPIPS on torchvision's AlexNet and VGG16 with random weights: what `models.lpips` is held against.

    python -m benchmarks.peers.lpips_torch --out tests/goldens/metrics/lpips.npz

Needs torch, torchvision and torch-fidelity, whose functions are applied to torchvision's layers; no weights are
downloaded, and the random ones follow from the names of the tensors.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.inception_torch import import_torchvision
from benchmarks.random_weights import random_state_dict

TAPS = {"alex": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}  # rectifiers whose outputs are compared
SIDES = {"alex": 45, "vgg16": 37}


def weights(kind: str) -> dict[str, torch.Tensor]:
    """Features and heads; heads are positive, as the published ones."""
    models = import_torchvision().models
    network = models.alexnet(weights=None) if kind == "alex" else models.vgg16(weights=None, init_weights=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.features.state_dict(prefix="features.").items()}
    channels = [shapes[f"features.{tap - 1}.weight"][0] for tap in TAPS[kind]]
    shapes |= {f"lin{depth}.model.1.weight": (1, count, 1, 1) for depth, count in enumerate(channels)}
    found = {name: torch.from_numpy(value) for name, value in random_state_dict(shapes).items()}
    return {name: value.abs() if name.startswith("lin") else value for name, value in found.items()}


def distance(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of images [b, h, w, 3] in [-1, 1]."""
    import_torchvision()
    theirs: Any = importlib.import_module("torch_fidelity.sample_similarity_lpips")
    models, state = import_torchvision().models, weights(kind)
    network = models.alexnet(weights=None) if kind == "alex" else models.vgg16(weights=None, init_weights=False)
    features = network.features.eval()
    features.load_state_dict({name[9:]: value for name, value in state.items() if name.startswith("features.")})
    total = torch.zeros(len(a))
    # It takes 0..255 in uint8 or float.
    x, y = (
        theirs.SampleSimilarityLPIPS.normalize((torch.from_numpy(i).permute(0, 3, 1, 2) + 1) * 127.5) for i in (a, b)
    )
    with torch.no_grad():
        for number, layer in enumerate(features[: TAPS[kind][-1] + 1]):
            x, y = layer(x), layer(y)
            if number in TAPS[kind]:
                difference = (theirs.normalize_tensor(x) - theirs.normalize_tensor(y)) ** 2
                head = state[f"lin{TAPS[kind].index(number)}.model.1.weight"]
                total += theirs.spatial_average(torch.nn.functional.conv2d(difference, head))
    return total.numpy()


def images(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    a = rng.uniform(-1, 1, (2, SIDES[kind], SIDES[kind] + 3, 3)).astype(np.float32)
    return a, np.clip(a + 0.3 * rng.normal(size=a.shape), -1, 1).astype(np.float32)


def main(path: Path) -> None:
    found: dict[str, Any] = {kind: distance(kind, *images(kind)) for kind in TAPS}
    print(found)
    np.savez_compressed(path, **found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args().out)
