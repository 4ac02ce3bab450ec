"""Methods by name: the edit each one makes to a config. `--config file.py:method` applies it before any override.

Every config file ends in `return methods.apply(config, method)`.
"""

from ml_collections import ConfigDict

METHODS: dict[str, dict] = {
    # The predictor-corrector sampler of the score-SDE paper, without a preconditioner.
    "pc": {"sampling": {"method": "pc"}},
    # Preconditioned diffusion sampling in the mode the config names, or in a given one.
    "pds": {"sampling": {"method": "pds"}},
    "pds_marginal": {"sampling": {"method": "pds", "pds_mode": "marginal"}},
    "pds_paper": {"sampling": {"method": "pds", "pds_mode": "paper", "step_norm": "batch"}},
    "pds_corrector_only": {"sampling": {"method": "pds", "pds_mode": "corrector_only"}},
    # --mode=train: a small classifier of noisy images.
    "classifier": {
        "training": {
            "method": "classifier",
            "batch_size": 64,
            "microbatch": 0,
            "num_steps": 1500,
            "ema_rate": 0.995,
            "noise_levels": "lognormal_mix",
            "lognormal_share": 0.75,
            "sample_every": 250,
        },
        "optim": {"lr": 1e-3, "warmup": 100, "weight_decay": 0.05, "schedule": "cosine"},
    },
}


def apply(config: ConfigDict, method: str) -> ConfigDict:
    """`config`, edited in place for `method`; "" leaves it as it is. Raises ValueError for an unknown method."""
    if method and method not in METHODS:
        raise ValueError(
            f"--config file.py:{method}: the method {method!r} is unknown; choose one of {sorted(METHODS)}."
        )
    config.update(METHODS.get(method, {}))
    return config
