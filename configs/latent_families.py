"""The published latent models by family (Rombach et al. 2022): what the members of each share.

`config.data` is of the latents that diffusion sees: 64 x 64 x 4 for images of 512 pixels and a codec that halves three
times. The chain's betas are even in their roots ("scaled_linear"); level i is label i.
"""

from ml_collections import ConfigDict

from configs import base


def stable_diffusion(image_size: int, context: int, heads: int | tuple[int, ...], predicts: str) -> ConfigDict:
    """Stable Diffusion 1 and 2: text by CLIP, a KL codec with f = 8 and four channels.

    Args:
      image_size: of the training images, in pixels.
      context: width of the text encoder's states.
      heads: of attention, for all levels or for each.
    """
    config = _latent(beta_min=0.85, beta_max=12.0, image_size=image_size // 8, channels=4)
    with config.unlocked():
        config.model.update(
            name="unet2d_condition",
            predicts=predicts,
            nf=320,
            ch_mult=(1, 2, 4, 4),
            num_res_blocks=2,
            embedding_type="positional",
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            out_channels=4,
            cross_attention_dim=context,
            attention_head_dim=heads,
        )
    config.latent.update(kind="kl", scale_factor=0.18215, channels=4, block_out_channels=(128, 256, 512, 512))
    config.latent.text.update(kind="clip", width=context)
    config.guidance.cfg_scale = 7.5
    return config


def ldm(channels_first: int, ch_mult: tuple[int, ...]) -> ConfigDict:
    """LDM at 256 pixels: a VQ codec with f = 4, three channels and 8192 entries, on 64 x 64 latents."""
    config = _latent(beta_min=1.5, beta_max=19.5, image_size=64, channels=3)
    config.model.update(predicts="eps", nf=channels_first, ch_mult=ch_mult, num_res_blocks=2)
    config.latent.update(
        kind="vq", scale_factor=1.0, channels=3, block_out_channels=(128, 256, 512), num_vq_embeddings=8192
    )
    return config


def _latent(beta_min: float, beta_max: float, image_size: int, channels: int) -> ConfigDict:
    config = base.get_config()
    config.sde.update(name="discretevpsde", schedule="scaled_linear", beta_min=beta_min, beta_max=beta_max)
    config.model.update(continuous=False, dropout=0.0)
    config.data.update(image_size=image_size, num_channels=channels, centered=True)
    config.sampling.update(method="dpmpp", num_steps=20, grid="time_uniform", microbatch=1)
    config.eval.update(num_samples=4, batch_size=4)
    return config
