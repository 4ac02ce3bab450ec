"""--mode=train: config.training.method names what is trained; every trainer runs the loop of `training/loop.py`."""

from collections.abc import Callable

from builders.config import apply_overrides, resolve_config
from builders.latent import refuse
from modes import (
    train_autoencoder,
    train_classifier,
    train_consistency,
    train_dsno,
    train_ld3,
    train_progressive_distillation,
    train_score_matching,
)
from modes.request import Request, workdir_of

TRAINERS: dict[str, Callable[..., None]] = {
    "score_matching": train_score_matching.train,
    "autoencoder": train_autoencoder.train,
    "classifier": train_classifier.train,
    "progressive_distillation": train_progressive_distillation.train,
    "consistency": train_consistency.train,
    "ld3": train_ld3.train,
    "dsno": train_dsno.train,
}
ON_LATENTS = ("score_matching", "autoencoder", "ld3")
# Trained by several processes together: their batches are images alone.
SHARED = ("score_matching", "classifier", "autoencoder")
PLANS: dict[str, Callable[..., None]] = {  # of --dry_run
    "progressive_distillation": train_progressive_distillation.show_plan,
    "consistency": train_consistency.show_plan,
    "ld3": train_ld3.show_plan,
    "dsno": train_dsno.show_plan,
}


def run(request: Request) -> None:
    """Trains into the work directory; a killed run resumes bit for bit. --dry_run shows the plan and trains nothing."""
    config = resolve_config(request.config)
    apply_overrides(config, request.overrides)
    method = config.training.method
    if method not in TRAINERS:
        raise ValueError(f"config.training.method={method!r} is unknown; choose one of {sorted(TRAINERS)}.")
    if request.cluster is not None and method not in SHARED:
        raise ValueError(f"--distributed: {method} is trained in one process; several share {' and '.join(SHARED)}.")
    if method not in ON_LATENTS:
        refuse(config, f"config.training.method={method!r}", f"On latents {', '.join(ON_LATENTS)} are trained.")
    if request.dry_run:
        if method not in PLANS:
            raise ValueError(f"--dry_run shows no plan of config.training.method={method!r}, only of {sorted(PLANS)}.")
        PLANS[method](config, request.checkpoint, request.workdir)
        return
    TRAINERS[method](config, workdir_of(request), request.checkpoint)
