"""DDPM++ on CIFAR-10, sub-VP, continuous.

    python main.py --config configs/subvp/cifar10_ddpmpp_continuous.py --workdir W

Published (score_sde README): FID 2.61, IS 9.56; by the probability flow FID 3.16, 3.02 bits/dim.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.vp_cifar10("subvpsde"), method)
