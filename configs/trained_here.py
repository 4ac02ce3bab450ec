"""What the models that were trained here share: EDM's scaling, its loss, and a few updates of LD3 to learn schedules.

The published objective leaves networks poor at large noise, where deterministic samplers begin (docs/training.md).
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from configs import base, methods

Edit = Callable[[ConfigDict], ConfigDict]


def get_config() -> ConfigDict:
    """A small NCSN++ of flowers; a file adds its data, its size and how long it was trained."""
    config = base.get_config()
    config.model.update(
        nf=32, num_res_blocks=2, fourier_scale=1.0, dropout=0.0, scaling="edm", scale_by_sigma=False, predicts="x0"
    )
    config.ld3.update(num_train=48, num_valid=16, batch_size=16, optimizer="gauss_newton", valid_every=1)
    config.data.holdout = 10
    config.eval.update(num_samples=16, batch_size=16)
    config.training.update(
        batch_size=32,
        reduce_mean=True,
        weighting="edm",
        noise_levels="lognormal_mix",
        lognormal_std=1.3,
        lognormal_share=0.75,
        log_every=20,
        checkpoint_every=200,
    )
    config.optim.update(lr=1e-3, warmup=100, schedule="cosine")
    config.seed = 0
    return config


def with_method(config: ConfigDict, method: str, training: Mapping[str, Edit]) -> ConfigDict:
    """The config under a method of `configs.methods`, then as that one was trained here."""
    config = methods.apply(config, method)
    edits = dict.fromkeys(("ld3", "s4s", "gs"), _learned) | dict(training)
    return edits[method](config) if method in edits else config


def _learned(config: ConfigDict) -> ConfigDict:
    """A few updates of Gauss-Newton, each on fresh pairs."""
    config.training.num_steps = 8
    return config
