"""NCSN++ on CelebA-HQ faces, 256 px, VE, continuous.

python main.py --config configs/ve/celebahq_256_ncsnpp_continuous.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ve_256(sigma_max=348.0), method)
