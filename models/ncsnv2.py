"""NCSNv2's RefineNet for 32- to 64-pixel images (Song and Ermon 2020), in the published Flax layout.

A residual encoder that reduces resolution once and dilates after, and a decoder of refinement blocks. Unconditional in
the noise level: the output is divided by the level's sigma.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Maps, NoiseLabels, OtherMaps
from models.layers import activation
from models.resample import naive_downsample

# Published init of these networks; only shapes matter for loading.
_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _conv(features: int, size: int, dilation: int = 1, bias: bool = True) -> nn.Conv:
    dilations = (dilation, dilation)
    return nn.Conv(features, (size, size), kernel_dilation=dilations, use_bias=bias, kernel_init=_init)


class InstanceNorm2dPlus(nn.Module):
    """InstanceNorm++: instance normalisation that keeps the standardised channel means, weighted by alpha."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        shape = (1, 1, 1, x.shape[-1])
        alpha = self.param("alpha", nn.initializers.ones, shape)
        gamma = self.param("gamma", nn.initializers.ones, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        means = x.mean((1, 2), keepdims=True)
        spread = (means - means.mean(-1, keepdims=True)) * jax.lax.rsqrt(means.var(-1, keepdims=True) + 1e-5)
        h = (x - means) * jax.lax.rsqrt(x.var((1, 2), keepdims=True) + 1e-5)
        return gamma * (h + alpha * spread) + beta


class ConvMeanPool(nn.Module):
    """A convolution and the mean of 2x2 pixels."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        return naive_downsample(_conv(self.features, self.size)(x))


class ResidualBlock(nn.Module):
    """norm, act, conv, norm, act, conv beside a shortcut; `down` halves the map, or dilates where dilation > 1."""

    features: int
    down: bool = False
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Maps) -> OtherMaps:
        dilation = self.dilation
        pool = self.down and dilation == 1
        h = nn.elu(InstanceNorm2dPlus()(x))
        h = _conv(x.shape[-1] if self.down else self.features, 3, dilation)(h)
        h = nn.elu(InstanceNorm2dPlus()(h))
        h = ConvMeanPool(self.features, 3)(h) if pool else _conv(self.features, 3, dilation)(h)
        if pool:
            x = ConvMeanPool(self.features, 1)(x)
        elif self.down or x.shape[-1] != self.features:
            x = _conv(self.features, 1 if dilation == 1 else 3, dilation)(x)
        return x + h


class CRPBlock(nn.Module):
    """Chained residual pooling."""

    stages: int = 2

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        x = nn.elu(x)
        path = x
        for _ in range(self.stages):
            path = nn.max_pool(path, (5, 5), (1, 1), "SAME")
            path = _conv(x.shape[-1], 3, bias=False)(path)
            x = path + x
        return x


class RCUBlock(nn.Module):
    """Residual convolution units."""

    blocks: int
    stages: int = 2

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        for _ in range(self.blocks):
            residual = x
            for _ in range(self.stages):
                x = _conv(residual.shape[-1], 3, bias=False)(nn.elu(x))
            x = x + residual
        return x


class MSFBlock(nn.Module):
    """Multi-resolution fusion: each input through a convolution, resized bilinearly (half-pixel centres), summed."""

    shape: tuple[int, ...]
    features: int

    @nn.compact
    def __call__(self, inputs: Sequence[OtherMaps]) -> OtherMaps:
        maps = [_conv(self.features, 3)(x) for x in inputs]
        resized = [jax.image.resize(h, (h.shape[0], *self.shape, h.shape[-1]), "bilinear") for h in maps]
        return functools.reduce(jnp.add, resized)


class RefineBlock(nn.Module):
    features: int
    start: bool = False
    end: bool = False

    @nn.compact
    def __call__(self, inputs: Sequence[OtherMaps], shape: tuple[int, ...]) -> OtherMaps:
        paths = [RCUBlock(2)(x) for x in inputs]
        h = paths[0] if self.start else MSFBlock(shape, self.features)(paths)
        return RCUBlock(3 if self.end else 1)(CRPBlock()(h))


class NCSNv2(nn.Module):
    """x [b, h, w, c], labels [b] integer levels (0 = largest sigma) -> score [b, h, w, c]; 1 network call."""

    nf: int = 128
    nonlinearity: str = "elu"
    scale_by_sigma: bool = True
    centered: bool = False
    discrete_sigmas: Sequence[float] = ()

    @nn.compact
    def __call__(self, x: Image, labels: NoiseLabels, train: bool = False) -> Image:
        act, nf = activation(self.nonlinearity), self.nf
        h = _conv(nf, 3)(x if self.centered else 2 * x - 1)
        h = ResidualBlock(nf)(h)
        layer1 = ResidualBlock(nf)(h)
        h = ResidualBlock(2 * nf, down=True)(layer1)
        layer2 = ResidualBlock(2 * nf)(h)
        h = ResidualBlock(2 * nf, down=True, dilation=2)(layer2)
        layer3 = ResidualBlock(2 * nf, dilation=2)(h)
        h = ResidualBlock(2 * nf, down=True, dilation=4)(layer3)
        layer4 = ResidualBlock(2 * nf, dilation=4)(h)
        ref = RefineBlock(2 * nf, start=True)([layer4], layer4.shape[1:3])
        ref = RefineBlock(2 * nf)([layer3, ref], layer3.shape[1:3])
        ref = RefineBlock(2 * nf)([layer2, ref], layer2.shape[1:3])
        ref = RefineBlock(nf, end=True)([layer1, ref], layer1.shape[1:3])
        h = _conv(x.shape[-1], 3)(act(InstanceNorm2dPlus()(ref)))
        if not self.scale_by_sigma:
            return h
        sigmas = jnp.asarray(np.asarray(self.discrete_sigmas), h.dtype)[labels.astype(jnp.int32)]
        return h / sigmas[:, None, None, None]
