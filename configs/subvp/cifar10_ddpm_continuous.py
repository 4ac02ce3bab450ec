"""DDPM on CIFAR-10, sub-VP, continuous.

    python main.py --config configs/subvp/cifar10_ddpm_continuous.py --workdir W

Published (score_sde README): by the probability flow FID 3.56, 3.05 bits/dim.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ddpm_cifar10("subvpsde", continuous=True), method)
