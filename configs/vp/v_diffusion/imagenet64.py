"""The teacher of progressive distillation and of DSNO on ImageNet, 64 px: 1000 classes, heads for x0 and eps.

    python main.py --config configs/vp/v_diffusion/imagenet64.py --workdir W --checkpoint imagenet_original \
        --steps 64 --labels 207

Published (Salimans and Ho 2022, figure): its students FID 2.96 in 8 steps, 3.89 in 4, 7.36 in 2 and 16.0 in one. The
same command draws from a student, whose file says how many steps it takes; leave --steps out.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = families.v_diffusion()
    config.model.update(nf=192, ch_mult=(1, 2, 3, 4), attn_resolutions=(8, 16, 32), num_head_channels=64, dropout=0.1)
    config.model.update(emb_ch=768, head="both")
    config.data.update(image_size=64, num_classes=1000)
    config.sampling.microbatch = 2
    return methods.apply(config, method)
