"""ADM on LSUN horse, 256 px.

    python main.py --config configs/adm/lsun_horse.py --workdir W --checkpoint lsun_horse.pt

Published: FID 2.57 (guided-diffusion README, 1000 steps).
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.adm_lsun(), method)
