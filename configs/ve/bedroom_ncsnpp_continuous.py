"""NCSN++ on LSUN bedrooms, 256 px, VE, continuous.

    python main.py --config configs/ve/bedroom_ncsnpp_continuous.py --workdir W

The published example, 166 levels: --speed_up 12 --freq_mask_path freq.npy
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ve_256(sigma_max=378.0), method)
