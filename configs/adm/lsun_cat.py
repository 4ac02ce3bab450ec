"""ADM on LSUN cat, 256 px.

    python main.py --config configs/adm/lsun_cat.py --workdir W --checkpoint lsun_cat.pt

Published: FID 5.57 (guided-diffusion README, 1000 steps).
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.adm_lsun(), method)
