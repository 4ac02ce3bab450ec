"""DDPM on CIFAR-10, VP, trained at 1000 noise levels.

    python main.py --config configs/vp/ddpm/cifar10.py --workdir W

Published (score_sde README): FID 3.24; by the probability flow FID 3.37, 3.28 bits/dim.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ddpm_cifar10("vpsde"), method)
