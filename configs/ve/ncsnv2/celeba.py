"""NCSNv2 on CelebA, 64 px.

python main.py --config configs/ve/ncsnv2/celeba.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = families.ncsnv2(num_scales=500, snr=0.128)
    config.sde.sigma_max = 90.0
    config.data.image_size = 64
    return methods.apply(config, method)
