"""The DDPM network on CIFAR-10, VE, trained at 1000 noise levels.

python main.py --config configs/ve/cifar10_ddpm.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = families.ve_cifar10(continuous=False, num_res_blocks=2)
    config.model.update(name="ddpm", fir=False, progressive_input="none", skip_rescale=False, resblock_type="ddpm")
    return methods.apply(config, method)
