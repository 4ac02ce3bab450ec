"""NCSN++ on FFHQ faces, 1024 px, VE, continuous.

    python main.py --config configs/ve/ffhq_ncsnpp_continuous.py --workdir W

The published example, 66 levels: --speed_up 30 --freq_mask_path freq.npy --space_mask_path space.npy
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ve_1024(), method)
