"""Records what diffusers and transformers put out for tiny latent-diffusion networks with weights drawn by name.

    python -m benchmarks.peers.latent_goldens tests/goldens/latent/networks.json.xz
    python -m benchmarks.peers.latent_goldens --published

The second prints a digest of the names and shapes of each published network (no weights are drawn). Needs torch,
diffusers and transformers; tests need only the file it writes. A case holds the class, its configuration, the shapes of
its state dict under the library's own names, and outputs; weights and inputs are drawn anew from their names by
`drawn`. Everything runs in float64 but for the libraries' sinusoids.
"""

import base64
import hashlib
import json
import lzma
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

VAE = dict(block_out_channels=[8, 16], norm_num_groups=4, layers_per_block=1)
UNET = dict(sample_size=4, block_out_channels=[8, 16], norm_num_groups=4, layers_per_block=1)
CROSS = dict(
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"]
)
ALL_CROSS = dict(down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2)
TEXT = dict(vocab_size=40, max_position_embeddings=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
# name -> (class, configuration)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kl": (
        "AutoencoderKL",
        VAE
        | dict(
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            sample_size=8,
        ),
    ),
    "kl_plain": (
        "AutoencoderKL",
        VAE
        | dict(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            latent_channels=2,
            scaling_factor=0.7,
        ),
    ),
    "vq": (
        "VQModel",
        VAE
        | dict(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            num_vq_embeddings=12,
            vq_embed_dim=2,
            scaling_factor=1.0,
        ),
    ),
    # Stable Diffusion 1: a number of heads, projections by convolution.
    "sd1": ("UNet2DConditionModel", UNET | CROSS | dict(attention_head_dim=2, cross_attention_dim=6)),
    # Stable Diffusion 2: heads of one width, linear projections.
    "sd2": (
        "UNet2DConditionModel",
        UNET | ALL_CROSS | dict(attention_head_dim=[2, 4], cross_attention_dim=6, use_linear_projection=True),
    ),
    # The other switches: depths, layers and classes a level, shifted sinusoids, scale and shift, a middle of its own.
    "mixed": (
        "UNet2DConditionModel",
        UNET
        | ALL_CROSS
        | dict(
            attention_head_dim=4,
            cross_attention_dim=[6, 6],
            transformer_layers_per_block=[1, 2],
            layers_per_block=[1, 2],
            num_class_embeds=5,
            flip_sin_to_cos=False,
            freq_shift=1,
            resnet_time_scale_shift="scale_shift",
            only_cross_attention=[False, True],
            in_channels=5,
            out_channels=3,
            mid_block_scale_factor=1.4,
            downsample_padding=0,
        ),
    ),
    "text": (
        "CLIPTextModelWithProjection",
        TEXT | dict(intermediate_size=12, projection_dim=6, hidden_act="quick_gelu", eos_token_id=39),
    ),
    "text_gelu": ("CLIPTextModel", TEXT | dict(intermediate_size=12, hidden_act="gelu", eos_token_id=2)),
    "image": (
        "CLIPVisionModelWithProjection",
        dict(
            image_size=8,
            patch_size=4,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=12,
            projection_dim=6,
        ),
    ),
}

LABELS, CLASSES = [981.0, 20.5], [3, 0]


def drawn(name: str, shape: Sequence[int]) -> np.ndarray:
    """The tensor of this name: float32, of a size that keeps activations near one."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.startswith("input"):
        return z.astype(np.float32)
    if z.ndim > 1:
        z /= np.sqrt(np.prod(shape[1:]))
    elif "norm" in name and name.endswith("weight"):
        z = 1 + 0.2 * z
    else:
        z *= 0.1
    return z.astype(np.float32)


def tokens(config: Mapping[str, Any]) -> np.ndarray:
    """Two texts with their ends at different places, padded by the token of the end and by zeros."""
    last = config["vocab_size"] - 1
    return np.array([[38, 3, 17, last, last, last, last], [38, 5, last, 0, 0, 0, 0]])


def pack(value: np.ndarray) -> str:
    """Every second value, in the order of the library's axes, as base64 of float32."""
    return base64.b64encode(value.ravel()[::2].astype("<f4").tobytes()).decode()


# Networks of the published models, by what tests call them.
_SD = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
_DOWN, _UP = ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"]
_CODEC = dict(layers_per_block=2, norm_num_groups=32)
_VIT_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_VIT_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("UNet2DConditionModel", _SD),
    "sd2": (
        "UNet2DConditionModel",
        dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
    ),
    "ldm_imagenet": (
        "UNet2DConditionModel",
        dict(
            in_channels=3,
            out_channels=3,
            block_out_channels=[192, 384, 576, 960],
            down_block_types=_DOWN,
            up_block_types=_UP,
            cross_attention_dim=512,
            attention_head_dim=1,
        ),
    ),
    "sd_codec": (
        "AutoencoderKL",
        _CODEC
        | dict(
            block_out_channels=[128, 256, 512, 512],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        ),
    ),
    "ldm_codec": (
        "VQModel",
        _CODEC
        | dict(
            block_out_channels=[128, 256, 512],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            num_vq_embeddings=8192,
        ),
    ),
    "sd15_text": ("CLIPTextModel", _VIT_L),
    "sd2_text": ("CLIPTextModel", _VIT_H | dict(hidden_act="gelu")),
    "clip_image": (
        "CLIPVisionModelWithProjection",
        dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
        | dict(projection_dim=768),
    ),
}


def digest(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, str]:
    """(tensors, numbers, hash of all names and shapes) of a state dict, spelt so that separators and trailing axes of
    length 1, which files of one network differ in, make no difference."""
    lines = []
    for name, shape in shapes.items():
        kept = list(shape)
        while kept and kept[-1] == 1:
            kept.pop()
        lines.append(f"{name.replace('.', '_')} {kept}")
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    return len(lines), count, hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def create(kind: str, config: Mapping[str, Any]) -> Any:
    """The network of this class."""
    import diffusers
    import transformers

    if not kind.startswith("CLIP"):
        return getattr(diffusers, kind)(**config)
    settings = transformers.CLIPTextConfig if "Text" in kind else transformers.CLIPVisionConfig
    return getattr(transformers, kind)(settings(**config))


def print_published() -> None:
    import torch

    for name, (kind, config) in PUBLISHED.items():
        with torch.device("meta"):
            state = create(kind, config).state_dict()
        shapes = {
            key.removeprefix("text_model.").removeprefix("vision_model."): value.shape for key, value in state.items()
        }
        print(f'    "{name}": {digest(shapes)},')


def main(target: str) -> None:
    import torch

    torch.set_grad_enabled(False)
    found: dict[str, dict[str, Any]] = {}

    def tensor(name: str, *shape: int) -> Any:
        return torch.from_numpy(drawn(name, shape)).double()

    for case, (kind, config) in CASES.items():
        network = create(kind, config)
        shapes = {name: list(value.shape) for name, value in sorted(network.state_dict().items())}
        network.load_state_dict({name: torch.from_numpy(drawn(name, shape)) for name, shape in shapes.items()})
        network = network.double().eval()
        outputs: dict[str, Any] = {}
        if kind == "AutoencoderKL":
            channels = network.config.latent_channels
            outputs["encoded"] = network.encode(tensor("input.image", 1, 3, 8, 8)).latent_dist.parameters
            outputs["decoded"] = network.decode(tensor("input.latent", 1, channels, 4, 4)).sample
        elif kind == "VQModel":
            latent = tensor("input.latent", 1, network.config.vq_embed_dim, 4, 4)
            outputs["encoded"] = network.encode(tensor("input.image", 1, 3, 8, 8)).latents
            outputs["decoded"] = network.decode(latent).sample
            outputs["unquantised"] = network.decode(latent, force_not_quantize=True).sample
        elif kind == "UNet2DConditionModel":
            x = tensor("input.x", 2, network.config.in_channels, 4, 4)
            classes = torch.tensor(CLASSES) if network.config.num_class_embeds else None
            labels, context = torch.tensor(LABELS, dtype=torch.float64), tensor("input.context", 2, 3, 6)
            outputs["output"] = network(x, labels, context, class_labels=classes).sample
        elif "Text" in kind:
            out = network(torch.from_numpy(tokens(config)))
            outputs["hidden"] = out.last_hidden_state
            outputs["pooled"] = out.text_embeds if "Projection" in kind else out.pooler_output
        else:
            out = network(tensor("input.image", 2, 3, 8, 8))
            outputs.update(hidden=out.last_hidden_state, pooled=out.image_embeds)
        packed = {name: pack(value.numpy()) for name, value in outputs.items()}
        found[case] = {"class": kind, "config": config, "shapes": shapes, "outputs": packed}
    content = json.dumps(found, separators=(",", ":")).encode()
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_bytes(lzma.compress(content, preset=9))


if __name__ == "__main__":
    if sys.argv[1] == "--published":
        print_published()
    else:
        main(sys.argv[1])
