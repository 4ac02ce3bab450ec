"""NCSNv2 on CIFAR-10.

python main.py --config configs/ve/ncsnv2/cifar10.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ncsnv2(num_scales=232, snr=0.176), method)
