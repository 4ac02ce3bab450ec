"""The command line as a mode sees it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from builders.config import apply_overrides
from builders.model import Model, load
from builders.processes import Cluster

# Short flags, the published ones among them, and the config key that each one sets.
SHORT_FLAGS = {
    "method": "sampling.method",
    "steps": "sampling.num_steps",
    "speed_up": "sampling.speed_up",
    "alpha": "sampling.alpha",
    "freq_mask_path": "sampling.freq_mask_path",
    "space_mask_path": "sampling.space_mask_path",
    "labels": "sampling.labels",
    "prompts": "sampling.prompts",
    "negative_prompt": "sampling.negative_prompt",
    "cfg_scale": "guidance.cfg_scale",
    "data": "data.source",
    "start_image": "sampling.start_image",
    "start_sigma": "sampling.start_sigma",
    "num_samples": "eval.num_samples",
    "batch_size": "eval.batch_size",
    "eval_folder": "eval.eval_folder",
}


class Request(NamedTuple):
    """The command line, after flags have been put into the config."""

    config: ConfigDict | None  # None: --config was left out
    workdir: Path | None
    checkpoint: str = ""
    output: str = ""
    seeds: str = ""
    overrides: Mapping[str, Any] = {}  # config keys set by short flags
    dry_run: bool = False
    sweep: tuple[str, ...] = ()
    shard: str = ""
    minutes: float = 10.0  # --mode=compare: about how long it may take
    train: str = ""  # --mode=compare: what is learned too, "ld3" or nothing
    from_image: str = ""  # --mode=sample: draws this image again
    from_model: int = 0  # --mode=masks: from so many images that the model draws
    cluster: Cluster | None = None  # --distributed: the other processes of this run


def open_model(request: Request) -> Model:
    """The model of a request, with the short flags applied to whichever config it has."""
    model = load(request.config, request.checkpoint, workdir=request.workdir)
    apply_overrides(model.config, request.overrides)
    return model


def workdir_of(request: Request) -> Path:
    if request.workdir is None:
        raise ValueError("--workdir is missing: name the folder that results are written to.")
    return request.workdir


def parse_seeds(text: str, count: int) -> list[int]:
    """ "0-63", "3,7" or "0-3,9" -> the indices; "" -> the first `count`."""
    if not text:
        if count < 1:
            raise ValueError(f"--num_samples={count} must be at least 1.")
        return list(range(count))
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and (not high.isdecimal() or int(high) < int(low))):
            raise ValueError(f"--seeds={text!r}: {part!r} is neither a number nor a range such as 0-63.")
        seeds += range(int(low), int(high if dash else low) + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={text!r} names an image twice.")
    return seeds
