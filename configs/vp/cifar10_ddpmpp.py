"""DDPM++ on CIFAR-10, VP, trained at 1000 noise levels.

    python main.py --config configs/vp/cifar10_ddpmpp.py --workdir W

Published (score_sde README): FID 2.78, IS 9.64.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.vp_cifar10("vpsde", continuous=False), method)
