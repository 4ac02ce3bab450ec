"""DDPM++ on CIFAR-10, VP, continuous.

    python main.py --config configs/vp/cifar10_ddpmpp_continuous.py --workdir W

Published (score_sde README): FID 2.55, IS 9.58; by the probability flow FID 3.93, 3.16 bits/dim.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.vp_cifar10("vpsde"), method)
