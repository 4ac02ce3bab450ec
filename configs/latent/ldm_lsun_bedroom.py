"""LDM on LSUN bedrooms, unconditional, 256 px (lsun_beds256): the network of `models.adm` on VQ latents.

    python main.py --config configs/latent/ldm_lsun_bedroom.py --workdir W --checkpoint lsun_beds256.ckpt

Published for few calls (reprinted in the GS paper from LD3's): FID at 4, 5, 6, 7 calls: DPM-Solver++ 48.82, 18.64,
8.50, 5.16; LD3 8.48, 5.93, 4.52, 4.16; teacher 3.06.
"""

from ml_collections import ConfigDict

from configs import latent_families, methods


def get_config(method: str = "") -> ConfigDict:
    config = latent_families.ldm(224, ch_mult=(1, 2, 3, 4))
    config.model.update(
        name="adm",
        attn_resolutions=(32, 16, 8),
        num_head_channels=32,
        use_scale_shift_norm=False,
        resblock_updown=False,
    )
    return methods.apply(config, method)
