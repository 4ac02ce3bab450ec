"""NCSN++ on CIFAR-10, VE, continuous, twice as deep.

    python main.py --config configs/ve/cifar10_ncsnpp_deep_continuous.py --workdir W

Published (score_sde README): FID 2.20, IS 9.89.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = families.ve_cifar10(num_res_blocks=8)
    config.training.num_steps = 950_001
    return methods.apply(config, method)
