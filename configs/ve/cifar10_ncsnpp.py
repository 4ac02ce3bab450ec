"""NCSN++ on CIFAR-10, VE, trained at 1000 noise levels.

    python main.py --config configs/ve/cifar10_ncsnpp.py --workdir W

Published (score_sde README): FID 2.45, IS 9.73.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ve_cifar10(continuous=False), method)
