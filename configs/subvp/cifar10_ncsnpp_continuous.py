"""NCSN++ on CIFAR-10, sub-VP, continuous.

python main.py --config configs/subvp/cifar10_ncsnpp_continuous.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.vp_cifar10_ncsnpp("subvpsde"), method)
