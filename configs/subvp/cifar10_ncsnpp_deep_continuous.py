"""NCSN++ on CIFAR-10, sub-VP, continuous, twice as deep.

python main.py --config configs/subvp/cifar10_ncsnpp_deep_continuous.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = families.vp_cifar10_ncsnpp("subvpsde", num_res_blocks=8)
    config.training.num_steps = 950_001
    return methods.apply(config, method)
