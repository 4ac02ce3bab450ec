"""NCSN++ on CIFAR-10, VP, trained at 1000 noise levels.

python main.py --config configs/vp/cifar10_ncsnpp.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.vp_cifar10_ncsnpp("vpsde", continuous=False), method)
