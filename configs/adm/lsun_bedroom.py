"""ADM on LSUN bedroom, 256 px.

    python main.py --config configs/adm/lsun_bedroom.py --workdir W --checkpoint lsun_bedroom.pt

Published: FID 1.90 (guided-diffusion README, 1000 steps).
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.adm_lsun(), method)
