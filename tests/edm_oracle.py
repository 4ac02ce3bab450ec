"""EDM's U-Nets in NumPy, NCHW, from tensors under the names of its pickles: the published definition, layer by layer.

Written from the description of the networks, not from their JAX form; held against recorded outputs beside it.
"""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(p, name, x, eps):
    groups = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
    groups = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + eps)
    return groups.reshape(x.shape) * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def correlate(x, weight, pad, stride=1):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight)


def depthwise(x, taps, pad, stride):
    """Every channel with the outer product of `taps`, normalised to sum 1."""
    taps = np.asarray(taps, float)
    filter = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    b, c, h, w = x.shape
    out = correlate(x.reshape(b * c, 1, h, w), filter, pad, stride)
    return out.reshape(b, c, *out.shape[2:])


def resample(x, taps, up=False, down=False):
    pad = (len(taps) - 1) // 2
    if up:  # zeros between pixels, four times the filter
        stuffed = np.zeros((*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1))
        stuffed[:, :, ::2, ::2] = x
        return 4 * depthwise(stuffed, taps, len(taps) - 1 - pad, 1)
    return depthwise(x, taps, pad, 2) if down else x


def conv(p, name, x, taps=(1, 1), up=False, down=False, fused=False):
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"][:, None, None]
    pad = weight.shape[-1] // 2
    if fused:
        return depthwise(correlate(x, weight, pad + (len(taps) - 1) // 2), taps, 0, 2) + bias
    return correlate(resample(x, taps, up, down), weight, pad) + bias


def block(p, name, x, emb, heads, style, up=False, down=False):
    """`style`: (adaptive, resample_proj, skip_scale, eps, filter)."""
    adaptive, project, skip_scale, eps, taps = style
    h = conv(p, f"{name}.conv0", silu(group_norm(p, f"{name}.norm0", x, eps)), taps, up, down)
    params = linear(p, f"{name}.affine", emb)[:, :, None, None]
    if adaptive:
        scale, shift = np.split(params, 2, axis=1)
        h = silu(shift + group_norm(p, f"{name}.norm1", h, eps) * (scale + 1))
    else:
        h = silu(group_norm(p, f"{name}.norm1", h + params, eps))
    h = conv(p, f"{name}.conv1", h)
    if x.shape[1] != h.shape[1] or ((up or down) and project):
        x = conv(p, f"{name}.skip", x, taps, up, down)
    else:
        x = resample(x, taps, up, down)
    x = (h + x) * skip_scale
    if heads:
        b, c, height, width = x.shape
        qkv = conv(p, f"{name}.qkv", group_norm(p, f"{name}.norm2", x, eps))
        q, k, v = qkv.reshape(b, heads, c // heads, 3, height * width).transpose(3, 0, 1, 2, 4)
        logits = np.einsum("bhcq,bhck->bhqk", q, k) / np.sqrt(c // heads)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        attended = np.einsum("bhqk,bhck->bhcq", weights / weights.sum(-1, keepdims=True), v)
        x = (conv(p, f"{name}.proj", attended.reshape(x.shape)) + x) * skip_scale
    return x


def sinusoids(t, size, endpoint):
    angles = t[:, None] * 10000.0 ** (-np.arange(size // 2) / (size // 2 - endpoint))
    return np.cos(angles), np.sin(angles)


def labels_of(p, name, given, rows, scale=1.0):
    """The contribution of class or augmentation labels; zero rows where none are given."""
    if f"{name}.weight" not in p:
        return 0.0
    width = p[f"{name}.weight"].shape[1]
    return linear(p, name, (np.zeros((rows, width)) if given is None else given) * scale)


def song_unet(
    p, x, c_noise, mult, blocks, attention, fourier=False, encoder="standard", decoder="standard", taps=(1, 1),
    classes=None, augment=None,
):  # fmt: skip
    if fourier:
        angles = 2 * np.pi * c_noise[:, None] * p["map_noise.freqs"]
        cosines, sines = np.cos(angles), np.sin(angles)
    else:
        cosines, sines = sinusoids(c_noise, p["map_layer0.weight"].shape[1], 1)
    emb = np.concatenate([sines, cosines], 1)
    if "map_label.weight" in p:
        emb = emb + labels_of(p, "map_label", classes, len(x), np.sqrt(p["map_label.weight"].shape[1]))
    emb = emb + labels_of(p, "map_augment", augment, len(x))
    emb = silu(linear(p, "map_layer1", silu(linear(p, "map_layer0", emb))))
    style = (False, True, np.sqrt(0.5), 1e-6, taps)
    aux, skips, res = x, [], x.shape[2]
    for level in range(len(mult)):
        name = f"enc.{res >> level}x{res >> level}"
        if level == 0:
            x = conv(p, f"{name}_conv", x)
        else:
            x = block(p, f"{name}_down", x, emb, 0, style, down=True)
            if encoder == "skip":
                aux = resample(aux, taps, down=True)
                x = x + conv(p, f"{name}_aux_skip", aux)
            if encoder == "residual":
                x = aux = (x + conv(p, f"{name}_aux_residual", aux, taps, down=True, fused=True)) / np.sqrt(2)
        skips.append(x)
        for i in range(blocks):
            x = block(p, f"{name}_block{i}", x, emb, int(res >> level in attention), style)
            skips.append(x)
    image = None
    for level in reversed(range(len(mult))):
        name = f"dec.{res >> level}x{res >> level}"
        if level == len(mult) - 1:
            x = block(p, f"{name}_in1", block(p, f"{name}_in0", x, emb, 1, style), emb, 0, style)
        else:
            x = block(p, f"{name}_up", x, emb, 0, style, up=True)
        for i in range(blocks + 1):
            heads = int(i == blocks and res >> level in attention)
            x = block(p, f"{name}_block{i}", np.concatenate([x, skips.pop()], 1), emb, heads, style)
        if decoder == "skip" or level == 0:
            head = conv(p, f"{name}_aux_conv", silu(group_norm(p, f"{name}_aux_norm", x, 1e-6)))
            image = head if image is None else resample(image, taps, up=True) + head
    return image


def dhariwal_unet(p, x, c_noise, mult, blocks, attention, head_channels=64, classes=None, augment=None):
    emb = np.concatenate(sinusoids(c_noise, p["map_layer0.weight"].shape[1], 0), 1)
    emb = emb + labels_of(p, "map_augment", augment, len(x))
    emb = linear(p, "map_layer1", silu(linear(p, "map_layer0", emb)))
    emb = silu(emb + labels_of(p, "map_label", classes, len(x)))
    style = (True, False, 1.0, 1e-5, (1, 1))

    def run(name, x, attends, **resampling):
        heads = p[f"{name}.conv1.weight"].shape[0] // head_channels if attends else 0
        return block(p, name, x, emb, heads, style, **resampling)

    skips, res = [], x.shape[2]
    for level in range(len(mult)):
        name, attends = f"enc.{res >> level}x{res >> level}", res >> level in attention
        x = conv(p, f"{name}_conv", x) if level == 0 else run(f"{name}_down", x, False, down=True)
        skips.append(x)
        for i in range(blocks):
            x = run(f"{name}_block{i}", x, attends)
            skips.append(x)
    for level in reversed(range(len(mult))):
        name, attends = f"dec.{res >> level}x{res >> level}", res >> level in attention
        if level == len(mult) - 1:
            x = run(f"{name}_in1", run(f"{name}_in0", x, True), False)
        else:
            x = run(f"{name}_up", x, False, up=True)
        for i in range(blocks + 1):
            x = run(f"{name}_block{i}", np.concatenate([x, skips.pop()], 1), attends)
    return conv(p, "out_conv", silu(group_norm(p, "out_norm", x, 1e-5)))
