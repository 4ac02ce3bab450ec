"""DDPM on CelebA-HQ faces, 256 px, VP, trained at 1000 noise levels.

python main.py --config configs/vp/ddpm/celebahq.py --workdir W
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.ddpm_256(), method)
