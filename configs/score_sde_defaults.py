"""The defaults that config files written for score_sde or PDS start from, in their own layout.

Published in three modules, `configs.default_cifar10_configs`, `default_celeba_configs` and `default_lsun_configs`; a
file that was copied without its tree gets them from here (`configs.score_sde.load_foreign`).
"""

import copy
from typing import Any

_OPTIM: dict[str, Any] = {
    "weight_decay": 0,
    "optimizer": "Adam",
    "lr": 2e-4,
    "beta1": 0.9,
    "eps": 1e-8,
    "warmup": 5000,
    "grad_clip": 1.0,
}

_CIFAR10: dict[str, Any] = {
    "training": {
        "batch_size": 128,
        "n_iters": 1300001,
        "snapshot_freq": 50000,
        "log_freq": 50,
        "eval_freq": 100,
        "snapshot_freq_for_preemption": 10000,
        "snapshot_sampling": True,
        "likelihood_weighting": False,
        "continuous": True,
        "reduce_mean": False,
    },
    "sampling": {"n_steps_each": 1, "noise_removal": True, "probability_flow": False, "snr": 0.16},
    "eval": {"batch_size": 1024, "num_samples": 50000},
    "data": {
        "dataset": "CIFAR10",
        "image_size": 32,
        "random_flip": True,
        "centered": False,
        "uniform_dequantization": False,
        "num_channels": 3,
    },
    "model": {
        "sigma_min": 0.01,
        "sigma_max": 50,
        "num_scales": 1000,
        "beta_min": 0.1,
        "beta_max": 20.0,
        "dropout": 0.1,
        "embedding_type": "fourier",
    },
    "optim": _OPTIM,
    "seed": 42,
}

# What the other two change.
_CELEBA: dict[str, dict] = {
    "sampling": {"snr": 0.17},
    "data": {"dataset": "CELEBA", "image_size": 64},
    "model": {"sigma_max": 90.0},
}
_LSUN: dict[str, dict] = {
    "training": {"batch_size": 64, "n_iters": 2400001, "snapshot_freq_for_preemption": 5000},
    "sampling": {"snr": 0.075},
    "eval": {"batch_size": 512},
    "data": {"dataset": "LSUN", "image_size": 256},
    "model": {"sigma_max": 378, "num_scales": 2000, "dropout": 0.0},
}

MODULES: dict[str, dict] = {
    "default_cifar10_configs": {},
    "default_celeba_configs": _CELEBA,
    "default_lsun_configs": _LSUN,
}


def default_config(module: str) -> dict:
    """The nested dict that the published `configs.<module>.get_default_configs()` holds; KeyError for another name."""
    config = copy.deepcopy(_CIFAR10)
    for section, values in MODULES[module].items():
        config[section].update(values)
    return config
