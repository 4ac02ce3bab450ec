"""NCSN++ on CelebA, 64 px, VE, trained at 1000 noise levels.

    python main.py --config configs/ve/celeba_ncsnpp.py --workdir W

No weights of it were published.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = families.ve_cifar10(continuous=False)
    config.sde.sigma_max = 90.0
    config.data.image_size = 64
    config.sampling.snr = 0.17
    return methods.apply(config, method)
