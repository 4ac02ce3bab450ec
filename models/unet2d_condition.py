"""The U-Net of latent diffusion and Stable Diffusion: diffusers' `UNet2DConditionModel`, CompVis' `UNetModel`.

`models.unet2d` with spatial transformers (`models.spatial_transformer`) in place of its attention, which look at a
context [b, n, d]: the hidden states of a text encoder, or the vector of a class (`models.clip`). x is a latent; labels
are indices of the chain, fractions allowed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from array_types import Context, Image, Labels, Maps, NoiseLabels, OtherChannels, Vectors
from models import unet2d
from models.layers import groups_of
from models.spatial_transformer import SpatialTransformer
from models.unet2d import ACTIVATIONS, BlockType, UNet2D, per_level

PLAIN_MIDDLE, CROSS_MIDDLE = "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"


class UNet2DCondition(UNet2D):
    """x [b, h, w, c], labels [b], context [b, n, d], classes [b] -> output [b, h, w, out_channels]; 1 network call.

    Attributes carry the names of config.json as in `UNet2D`. Four may be one value or a sequence, one a level from the
    finest: `num_res_blocks` (layers_per_block), `attention_head_dim`, which is the NUMBER of heads (diffusers keeps the
    misnomer), `transformer_layers_per_block`, the blocks of a transformer, and `only_cross_attention`. The width of the
    context is `cross_attention_dim`; classes are for networks that have a table of them (num_classes).
    """

    choices: ClassVar[Mapping[str, tuple]] = {
        **unet2d.CHOICES,
        "embedding_type": ("positional",),
        "mid_block_type": (None, PLAIN_MIDDLE, CROSS_MIDDLE),
    }
    down_blocks: ClassVar[Mapping[str, BlockType]] = {
        "DownBlock2D": BlockType(False, "conv"),
        "ResnetDownsampleBlock2D": BlockType(False, "resnet"),
        "CrossAttnDownBlock2D": BlockType(True, "conv", cross=True),
    }
    up_blocks: ClassVar[Mapping[str, BlockType]] = {
        "UpBlock2D": BlockType(False, "conv"),
        "ResnetUpsampleBlock2D": BlockType(False, "resnet"),
        "CrossAttnUpBlock2D": BlockType(True, "conv", cross=True),
    }

    nf: int = 320
    ch_mult: Sequence[float] = (1, 2, 4, 4)
    down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = CROSS_MIDDLE
    up_block_types: Sequence[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    out_channels: int = 4
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | Sequence[int] = 1
    only_cross_attention: bool | Sequence[bool] = False

    def __post_init__(self):
        levels = len(self.ch_mult)
        for key in ("num_res_blocks", "attention_head_dim", "transformer_layers_per_block", "only_cross_attention"):
            if len(per_level(getattr(self, key), levels)) != levels:
                raise ValueError(
                    f"config.model.{key}={getattr(self, key)} has not one entry for each of {levels} levels."
                )
        super().__post_init__()

    @nn.compact
    def __call__(  # type: ignore[override]  # the context, which most such networks need, before the classes
        self,
        x: Image,
        labels: NoiseLabels,
        context: jax.Array | None = None,
        classes: Labels | None = None,
        train: bool = False,
    ) -> OtherChannels:
        return self._run(x, labels, classes, self._checked(x, context), train)

    @property
    def _act(self) -> Callable[[jax.Array], jax.Array]:
        return ACTIVATIONS[self.act_fn]

    def _checked(self, x: Image, context: jax.Array | None) -> Context | None:
        """The context in the compute type; None where the network looks at none."""
        kinds = [self.down_blocks[kind] for kind in self.down_block_types]
        kinds += [self.up_blocks[kind] for kind in self.up_block_types]
        if not any(kind.cross for kind in kinds) and self.mid_block_type != CROSS_MIDDLE:
            return None
        if context is None and not self.is_initializing():
            raise ValueError(
                "This network looks at a context and was given none; name texts with --prompts or classes with "
                f"--labels (in Python: denoiser.given(context=...), [b, n, {self.cross_attention_dim}])."
            )
        context = jnp.zeros((len(x), 1, self.cross_attention_dim), x.dtype) if context is None else context
        if context.ndim != 3 or context.shape[-1] != self.cross_attention_dim or len(context) != len(x):
            raise ValueError(
                f"The context has shape {context.shape}; this network looks at "
                f"({len(x)}, n, {self.cross_attention_dim})."
            )
        return context.astype(self.dtype or x.dtype)

    def _attend(self, name: str, level: int, block: BlockType, h: Maps, context: Context | None) -> Maps:
        only_cross = per_level(self.only_cross_attention, len(self.ch_mult))[level]
        return self._transformer(name, level, only_cross)(h, context)

    def _transformer(self, name: str, level: int, only_cross: bool) -> SpatialTransformer:
        levels = len(self.ch_mult)
        heads = per_level(self.attention_head_dim, levels)[level]
        depth = per_level(self.transformer_layers_per_block, levels)[level]
        groups = self.norm_num_groups or groups_of(self.nf)
        return SpatialTransformer(heads, depth, groups, only_cross, self.dtype, name=name)

    def _middle(self, h: Maps, embedding: Vectors, context: Context | None, train: bool) -> Maps:
        width, groups = h.shape[-1], self.norm_num_groups
        settings: dict[str, Any] = dict(groups=groups, groups_out=groups, divide_by=self.mid_block_scale_factor)
        h = self._block("mid_block_resnets_0", width, **settings)(h, embedding, train)
        if self.mid_block_type == PLAIN_MIDDLE:  # which has one residual block here, not two
            return h
        # Its pixels attend to each other first, whatever only_cross_attention says of the levels.
        h = self._transformer("mid_block_attentions_0", len(self.ch_mult) - 1, only_cross=False)(h, context)
        return self._block("mid_block_resnets_1", width, **settings)(h, embedding, train)
