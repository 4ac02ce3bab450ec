"""NCSN++ and DDPM++ in PyTorch, for comparison with `models.ncsnpp`: the same graph, weights under the published names.

Written as a PyTorch user would: NCHW, `nn.GroupNorm`, FIR filters as convolutions. `all_modules` lists the modules in
the order they are called, which is how published state dicts number them, so that `checkpoints.names` carries weights
across. Covers the published NCSN++ and DDPM++ configs (BigGAN blocks); evaluation only, no dropout.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Filter(nn.Module):
    """x [b, c, h, w] filtered channel by channel with the normalised outer product of `taps`, an even number of them.

    `up`: after inserting zeros between pixels, factor 2; `stride` 2: keeping every second pixel. Depthwise and
    transposed convolutions: of the ways to write this, by far the fastest in PyTorch on a CPU.
    """

    def __init__(self, taps: tuple[float, ...], up: bool = False, stride: int = 1, pad: tuple[int, int] = (0, 0)):
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float64)
        kernel = torch.outer(line, line) / line.sum() ** 2
        # conv2d correlates, conv_transpose2d convolves; zero insertion needs a gain of 2 an axis.
        kernel = 4 * kernel if up else kernel.flip(0, 1)
        self.register_buffer("kernel", kernel.float()[None, None], persistent=False)
        self.up, self.stride, self.pad = up, stride, pad

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        if self.up:
            crop = (kernel.shape[-1] - 2) // 2
            return F.conv_transpose2d(x, kernel, stride=2, padding=crop, groups=channels)
        return F.conv2d(F.pad(x, (*self.pad, *self.pad)), kernel, stride=self.stride, groups=channels)


def resampler(model: Mapping[str, Any], up: bool) -> nn.Module:
    """Factor 2 up or down without parameters."""
    taps = tuple(model["fir_kernel"])
    excess = len(taps) - 2
    if not model["fir"]:
        return nn.Upsample(scale_factor=2, mode="nearest") if up else nn.AvgPool2d(2)
    if up:
        return Filter(taps, up=True)
    return Filter(taps, stride=2, pad=((excess + 1) // 2, excess // 2))


class FourierProjection(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(features), requires_grad=False)

    def forward(self, log_sigma: Tensor) -> Tensor:
        phase = log_sigma[:, None] * self.W[None] * 2 * math.pi
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class Residual(nn.Module):
    """BigGAN residual block, resampled on both branches if asked."""

    def __init__(self, model: Mapping[str, Any], inputs: int, outputs: int, resample: nn.Module | None = None):
        super().__init__()
        self.GroupNorm_0 = group_norm(inputs)
        self.Conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        if model["conditional"]:
            self.Dense_0 = nn.Linear(4 * model["nf"], outputs)
        self.GroupNorm_1 = group_norm(outputs)
        self.Conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs or resample is not None:
            self.Conv_2 = nn.Conv2d(inputs, outputs, 1)
        self.resample, self.rescale = resample, model["skip_rescale"]

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h)
        if embedding is not None:
            h = h + self.Dense_0(F.silu(embedding))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        x = self.Conv_2(x) if hasattr(self, "Conv_2") else x
        return (x + h) / math.sqrt(2) if self.rescale else x + h


class Linear1x1(nn.Module):
    """A linear map over channels, with the published names W [in, out] and b."""

    def __init__(self, channels: int):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(channels, channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:  # [b, pixels, channels]
        return x @ self.W + self.b


class Attention(nn.Module):
    def __init__(self, model: Mapping[str, Any], channels: int):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        for i in range(4):
            setattr(self, f"NIN_{i}", Linear1x1(channels))
        self.rescale = model["skip_rescale"]

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        flat = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        q, k, v = self.NIN_0(flat), self.NIN_1(flat), self.NIN_2(flat)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(c), dim=-1)
        out = self.NIN_3(weights @ v).transpose(1, 2).reshape(b, c, h, w)
        return (x + out) / math.sqrt(2) if self.rescale else x + out


class Combine(nn.Module):
    def __init__(self, inputs: int, outputs: int, method: str):
        super().__init__()
        self.Conv_0, self.method = nn.Conv2d(inputs, outputs, 1), method

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        pyramid = self.Conv_0(pyramid)
        return torch.cat([pyramid, h], dim=1) if self.method == "cat" else pyramid + h


class FilteredConv(nn.Module):
    """The filter, then a 3x3 convolution of stride 2."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[float, ...]):
        super().__init__()
        self.smooth = Filter(taps, pad=((len(taps) + 1) // 2, len(taps) // 2))
        self.Conv2d_0 = nn.Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(self.smooth(x))


class NCSNpp(nn.Module):
    """x [b, c, h, w], labels [b] -> [b, c, h, w]; `model` is config.model as a dict, `data` config.data.

    Raises ValueError for a config whose blocks it does not have.
    """

    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any]):
        super().__init__()
        wrong = {
            key: model[key]
            for key, choices in (
                ("resblock_type", ("biggan",)),
                ("progressive", ("none", "output_skip")),
                ("progressive_input", ("none", "input_skip", "residual")),
            )
            if model[key] not in choices
        }
        if model["progressive_input"] == "residual" and not model["fir"]:
            wrong["fir"] = False
        if model["embedding_type"] == "positional" and model["scale_by_sigma"]:
            wrong["scale_by_sigma"] = True  # by a table of noise levels
        if wrong:
            raise ValueError(f"The PyTorch peer has no network with {wrong}; choose another config.")
        self.model, self.centered = model, data["centered"]
        self.all_modules = nn.ModuleList(self._modules_in_order(data["image_size"], data["num_channels"]))
        # The resampling of image pyramids has no parameters and no number.
        self.shrink, self.grow = resampler(model, up=False), resampler(model, up=True)

    def _modules_in_order(self, size: int, channels: int) -> Iterator[nn.Module]:
        model = self.model
        nf, widths = model["nf"], [model["nf"] * multiplier for multiplier in model["ch_mult"]]
        if model["embedding_type"] == "fourier":
            yield FourierProjection(nf)
        if model["conditional"]:
            yield nn.Linear(2 * nf if model["embedding_type"] == "fourier" else nf, 4 * nf)
            yield nn.Linear(4 * nf, 4 * nf)
        yield nn.Conv2d(channels, nf, 3, padding=1)
        width, skips, pyramid = nf, [nf], channels
        for level, out in enumerate(widths):
            for _ in range(model["num_res_blocks"]):
                yield Residual(model, width, out)
                width = out
                if size in model["attn_resolutions"]:
                    yield Attention(model, width)
                skips.append(width)
            if level < len(widths) - 1:
                yield Residual(model, width, width, resampler(model, up=False))
                size //= 2
                if model["progressive_input"] == "input_skip":
                    yield Combine(pyramid, width, model["progressive_combine"])
                    width *= 2 if model["progressive_combine"] == "cat" else 1
                elif model["progressive_input"] == "residual":
                    yield FilteredConv(pyramid, width, tuple(model["fir_kernel"]))
                    pyramid = width
                skips.append(width)
        yield Residual(model, width, width)
        yield Attention(model, width)
        yield Residual(model, width, width)
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(model["num_res_blocks"] + 1):
                yield Residual(model, width + skips.pop(), out)
                width = out
            if size in model["attn_resolutions"]:
                yield Attention(model, width)
            if model["progressive"] == "output_skip":
                yield group_norm(width)
                yield nn.Conv2d(width, channels, 3, padding=1)
            if level > 0:
                yield Residual(model, width, width, resampler(model, up=True))
                size *= 2
        if model["progressive"] == "none":
            yield group_norm(width)
            yield nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        model, modules = self.model, iter(self.all_modules)
        embedding = self._embed(labels, modules)
        x = x if self.centered else 2 * x - 1
        pyramid, h = x, next(modules)(x)
        skips = [h]
        for level in range(len(model["ch_mult"])):
            for _ in range(model["num_res_blocks"]):
                h = next(modules)(h, embedding)
                h = next(modules)(h) if h.shape[2] in model["attn_resolutions"] else h
                skips.append(h)
            if level < len(model["ch_mult"]) - 1:
                h = next(modules)(h, embedding)
                if model["progressive_input"] == "input_skip":
                    pyramid = self.shrink(pyramid)
                    h = next(modules)(pyramid, h)
                elif model["progressive_input"] == "residual":
                    h = next(modules)(pyramid) + h
                    h = pyramid = h / math.sqrt(2) if model["skip_rescale"] else h
                skips.append(h)
        h = next(modules)(h, embedding)
        h = next(modules)(h)
        h = next(modules)(h, embedding)
        image = None
        for level in reversed(range(len(model["ch_mult"]))):
            for _ in range(model["num_res_blocks"] + 1):
                h = next(modules)(torch.cat([h, skips.pop()], dim=1), embedding)
            h = next(modules)(h) if h.shape[2] in model["attn_resolutions"] else h
            if model["progressive"] == "output_skip":
                part = self._to_image(h, modules)
                image = part if image is None else self.grow(image) + part
            if level > 0:
                h = next(modules)(h, embedding)
        image = self._to_image(h, modules) if image is None else image
        return image / labels[:, None, None, None] if model["scale_by_sigma"] else image

    def _embed(self, labels: Tensor, modules: Iterator[nn.Module]) -> Tensor | None:
        if self.model["embedding_type"] == "fourier":
            features = next(modules)(labels.log())
        else:
            half = self.model["nf"] // 2
            frequencies = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
            phase = labels[:, None] * frequencies[None]
            features = torch.cat([phase.sin(), phase.cos()], dim=1)
        if not self.model["conditional"]:
            return None
        first, second = next(modules), next(modules)
        return second(F.silu(first(features)))

    def _to_image(self, h: Tensor, modules: Iterator[nn.Module]) -> Tensor:
        norm, conv = next(modules), next(modules)
        return conv(F.silu(norm(h)))
