"""The teacher of progressive distillation and of DSNO on CIFAR-10: cosine schedule, predicts x0.

    python main.py --config configs/vp/v_diffusion/cifar10.py --workdir W --checkpoint cifar_original --steps 64

Published (Salimans and Ho 2022): FID 2.5 with 8192 steps; its students 2.57 in 8 steps, 3.00 in 4, 4.51 in 2 and
9.12 in one. The same command draws from a student, whose file says how many steps it takes; leave --steps out.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(families.v_diffusion(), method)
