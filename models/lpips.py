"""LPIPS: how far apart two images look, by the features of a classifier (Zhang et al. 2018).

At five depths of AlexNet or VGG16 the feature vectors of each pixel are brought to unit length; their squared
differences are summed over channels with learned weights, averaged over pixels, and the five numbers added. Parameters
have the names of torchvision's networks, "features_3/kernel" for `features.3.weight`, and of the published heads,
"lin0_model_1/kernel" for `lin0.model.1.weight`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from array_types import Image, Maps, OtherMaps, PerImage

# Of ImageNet's colours, for images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_LEAST = 1e-10  # added to lengths: a vector of zeros stays one


class Stage(NamedTuple):
    """Convolutions with rectifiers between two depths that are compared."""

    channels: int
    numbers: tuple[int, ...]  # of the convolutions in torchvision's sequence
    kernel: int = 3
    stride: int = 1
    pad: int = 1
    pool: int = 0  # window of the maximum before them, at every second pixel; 0: none


STAGES = {
    "alex": (
        Stage(64, (0,), kernel=11, stride=4, pad=2),
        Stage(192, (3,), kernel=5, pad=2, pool=3),
        Stage(384, (6,), pool=3),
        Stage(256, (8,)),
        Stage(256, (10,)),
    ),
    "vgg16": (
        Stage(64, (0, 2)),
        Stage(128, (5, 7), pool=2),
        Stage(256, (10, 12, 14), pool=2),
        Stage(512, (17, 19, 21), pool=2),
        Stage(512, (24, 26, 28), pool=2),
    ),
}
LEAST_SIDE = {"alex": 31, "vgg16": 16}  # pixels; below, nothing is left for the last stage


class FeatureMaps(nn.Module):
    """Images [b, h, w, 3] in [-1, 1] -> the maps of five depths, [b, h', w', c']."""

    kind: str

    @nn.compact
    def __call__(self, x: Image) -> list[OtherMaps]:
        x = (x - jnp.asarray(_SHIFT, x.dtype)[None, None, None]) / jnp.asarray(_SCALE, x.dtype)[None, None, None]
        maps = []
        for stage in STAGES[self.kind]:
            if stage.pool:
                x = nn.max_pool(x, (stage.pool, stage.pool), (2, 2))
            for number in stage.numbers:
                kernel, strides = (stage.kernel, stage.kernel), (stage.stride, stage.stride)
                x = nn.Conv(stage.channels, kernel, strides, stage.pad, name=f"features_{number}")(x)
                x = nn.relu(x)
            maps.append(x)
        return maps


class Lpips(FeatureMaps):
    """The distance of each pair of images [b, h, w, 3] in [-1, 1], [b]; two network calls a pair."""

    @nn.compact
    def __call__(self, a: Image, b: Image) -> PerImage:  # type: ignore[override]
        total = jnp.zeros(len(a), a.dtype)
        for depth, x in enumerate(super().__call__(jnp.concatenate([a, b]))):
            u, v = jnp.split(unit(x), 2)
            head = nn.Conv(1, (1, 1), use_bias=False, name=f"lin{depth}_model_1")
            total += head((u - v) ** 2).mean((1, 2, 3))
        return total


def unit(x: Maps) -> Maps:
    """Each pixel's vector of x [b, h, w, c] at length 1."""
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    # Bounded before the root, whose derivative at 0 is infinite.
    return x / (jnp.sqrt(jnp.maximum(squares, _LEAST**2)) + _LEAST)
