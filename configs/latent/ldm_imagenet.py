"""LDM on ImageNet, class-conditional, 256 px (cin256-v2): the class is a context of one vector. 400.9 M parameters.

    python main.py --config configs/latent/ldm_imagenet.py --workdir W --checkpoint cin256-v2.ckpt --labels 3,7

Entry 1000 of the table stands for no class. Published for guidance 2 and few calls (reprinted in the GS paper from
LD3's): FID at 4, 5, 6, 7 calls: DPM-Solver++ 26.07, 11.91, 7.51, 5.95; LD3 9.19, 5.03, 4.46, 4.32; teacher 4.10.
"""

from ml_collections import ConfigDict

from configs import latent_families, methods


def get_config(method: str = "") -> ConfigDict:
    config = latent_families.ldm(192, ch_mult=(1, 2, 3, 5))
    with config.unlocked():
        config.model.update(
            name="unet2d_condition",
            embedding_type="positional",
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            out_channels=3,
            cross_attention_dim=512,
            attention_head_dim=1,
        )
    config.latent.text.update(kind="class", width=512, num_classes=1001)
    config.guidance.cfg_scale = 2.0
    return methods.apply(config, method)
