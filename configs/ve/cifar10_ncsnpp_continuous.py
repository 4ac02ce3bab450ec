"""NCSN++ on CIFAR-10, VE, continuous.

    python main.py --config configs/ve/cifar10_ncsnpp_continuous.py --workdir W

Published (score_sde README): FID 2.38, IS 9.83.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ve_cifar10(), method)
