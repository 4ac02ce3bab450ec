"""Inception v3 (Szegedy et al. 2016), the network behind FID, in the two variants whose weights people own.

* "pytorch_fid": the graph that TensorFlow published in 2015 with 1008 outputs, as pytorch-fid's `.pth` file holds it.
  Its average pools do not count padding, and its last block pools by the maximum. FID is defined by these weights.
* "torchvision": the network of that library, trained anew, with 1000 outputs and plain average pools. Its features are
  others, and so is every distance between them.

Parameters have torchvision's names, "Mixed_5b/branch5x5_1/conv/kernel" for `Mixed_5b.branch5x5_1.conv.weight`.
Normalisation is by the recorded moments; nothing here is trained. `models.inception_input` makes images ready for it.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from array_types import Image, Maps, OtherMaps, OtherSize, Vectors

VARIANTS = ("pytorch_fid", "torchvision")
SIDE = 299  # pixels of the images it was trained on
FEATURES = 2048


class Outputs(NamedTuple):
    """Of b images."""

    features: Vectors  # [b, 2048]: the last feature maps, averaged over pixels
    logits: Vectors  # [b, classes]


class ConvNorm(nn.Module):
    """Convolution without bias, normalisation by recorded moments, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        strides = (self.stride, self.stride)
        x = nn.Conv(self.features, self.kernel, strides, self.padding, use_bias=False, name="conv")(x)
        return nn.relu(RecordedNorm(name="bn")(x))


class RecordedNorm(nn.Module):
    """Batch normalisation in evaluation: (x - mean) / sqrt(variance + 0.001) * scale + bias, a channel each."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("running_mean", nn.initializers.zeros, shape)
        variance = self.param("running_var", nn.initializers.ones, shape)
        gain = scale * jax.lax.rsqrt(variance + 0.001)
        return x * gain[None, None, None] + (bias - mean * gain)[None, None, None]


class BlockA(nn.Module):
    """35 x 35 maps: 1x1, 5x5, two 3x3, pooled. [b, h, w, c] -> [b, h, w, 224 + pooled]."""

    pooled: int  # channels of the pooled branch
    count_padding: bool

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        one = ConvNorm(64, name="branch1x1")(x)
        five = ConvNorm(48, name="branch5x5_1")(x)
        five = ConvNorm(64, (5, 5), name="branch5x5_2")(five)
        double = ConvNorm(64, name="branch3x3dbl_1")(x)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_3")(double)
        pooled = ConvNorm(self.pooled, name="branch_pool")(average_pool(x, self.count_padding))
        return jnp.concatenate([one, five, double, pooled], axis=-1)


class BlockB(nn.Module):
    """Halves 35 x 35 maps. [b, h, w, c] -> [b, (h - 1) // 2, (w - 1) // 2, 480 + c]."""

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        three = ConvNorm(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = ConvNorm(64, name="branch3x3dbl_1")(x)
        double = ConvNorm(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvNorm(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, halve(x)], axis=-1)


class BlockC(nn.Module):
    """17 x 17 maps: 7x7 convolutions as pairs of 1x7 and 7x1. [b, h, w, c] -> [b, h, w, 768]."""

    inner: int  # channels between the two of a pair
    count_padding: bool

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        across, down = (1, 7), (7, 1)
        one = ConvNorm(192, name="branch1x1")(x)
        seven = ConvNorm(self.inner, name="branch7x7_1")(x)
        seven = ConvNorm(self.inner, across, name="branch7x7_2")(seven)
        seven = ConvNorm(192, down, name="branch7x7_3")(seven)
        double = ConvNorm(self.inner, name="branch7x7dbl_1")(x)
        double = ConvNorm(self.inner, down, name="branch7x7dbl_2")(double)
        double = ConvNorm(self.inner, across, name="branch7x7dbl_3")(double)
        double = ConvNorm(self.inner, down, name="branch7x7dbl_4")(double)
        double = ConvNorm(192, across, name="branch7x7dbl_5")(double)
        pooled = ConvNorm(192, name="branch_pool")(average_pool(x, self.count_padding))
        return jnp.concatenate([one, seven, double, pooled], axis=-1)


class BlockD(nn.Module):
    """Halves 17 x 17 maps. [b, h, w, c] -> [b, (h - 1) // 2, (w - 1) // 2, 512 + c]."""

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        three = ConvNorm(192, name="branch3x3_1")(x)
        three = ConvNorm(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = ConvNorm(192, name="branch7x7x3_1")(x)
        seven = ConvNorm(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = ConvNorm(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = ConvNorm(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, halve(x)], axis=-1)


class BlockE(nn.Module):
    """8 x 8 maps, with branches that fork. [b, h, w, c] -> [b, h, w, 2048]."""

    pool: str  # "average", "average_inside" (padding is not counted) or "max"

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        across, down = (1, 3), (3, 1)
        one = ConvNorm(320, name="branch1x1")(x)
        three = ConvNorm(384, name="branch3x3_1")(x)
        double = ConvNorm(448, name="branch3x3dbl_1")(x)
        double = ConvNorm(384, (3, 3), name="branch3x3dbl_2")(double)
        forks = [
            ConvNorm(384, kernel, name=f"{name}{side}")(branch)
            for name, branch in (("branch3x3_2", three), ("branch3x3dbl_3", double))
            for side, kernel in (("a", across), ("b", down))
        ]
        if self.pool == "max":
            pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        else:
            pooled = average_pool(x, self.pool == "average")
        pooled = ConvNorm(192, name="branch_pool")(pooled)
        return jnp.concatenate([one, *forks, pooled], axis=-1)


def average_pool(x: Maps, count_padding: bool) -> Maps:
    """Means over 3 x 3 pixels; at the border over what lies inside, or with zeros beyond it counted."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=count_padding)


def halve(x: Maps) -> OtherSize:
    """Maxima over 3 x 3 pixels at every second one."""
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class InceptionV3(nn.Module):
    """x [b, h, w, 3] in about [-1, 1], h, w >= 75 (299 as trained) -> `Outputs`."""

    variant: str = "pytorch_fid"

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise ValueError(f"The detector {self.variant!r} is unknown; choose one of {VARIANTS}.")
        super().__post_init__()

    @property
    def classes(self) -> int:
        return 1008 if self.variant == "pytorch_fid" else 1000

    @nn.compact
    def __call__(self, x: Image) -> Outputs:
        plain = self.variant == "torchvision"  # its average pools count the padding
        x = ConvNorm(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNorm(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = halve(x)
        x = ConvNorm(80, name="Conv2d_3b_1x1")(x)
        x = ConvNorm(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = halve(x)
        x = BlockA(32, plain, name="Mixed_5b")(x)
        x = BlockA(64, plain, name="Mixed_5c")(x)
        x = BlockA(64, plain, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        x = BlockC(128, plain, name="Mixed_6b")(x)
        x = BlockC(160, plain, name="Mixed_6c")(x)
        x = BlockC(160, plain, name="Mixed_6d")(x)
        x = BlockC(192, plain, name="Mixed_6e")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE("average" if plain else "average_inside", name="Mixed_7b")(x)
        x = BlockE("average" if plain else "max", name="Mixed_7c")(x)
        features = x.mean((1, 2))
        return Outputs(features, nn.Dense(self.classes, name="fc")(features))
