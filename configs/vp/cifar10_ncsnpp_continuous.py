"""NCSN++ on CIFAR-10, VP, continuous.

python main.py --config configs/vp/cifar10_ncsnpp_continuous.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.vp_cifar10_ncsnpp("vpsde"), method)
