"""Training states of two JAX programs, as Flax msgpack (files without an extension, such as `checkpoint_<n>`).

* score_sde: step, optimizer {target, state}, lr, model_state, ema_rate, params_ema, rng. `params_ema` are the averaged
  weights (the Fourier `W` included), `optimizer/target` the raw ones.
* progressive distillation: step, params or optimizer {target}, ema_params and num_sample_steps.

The optimizer classes that wrote them have left Flax, so the bytes are restored without a target, into nested dicts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from checkpoints.base import Checkpoint, flatten


def read(path: Path) -> Checkpoint:
    """Tensors under their Flax paths, "ResnetBlockBigGANpp_0/Conv_0/kernel", as stored (old GroupNorms: (1, 1, 1, C)).

    Raises: ValueError for a truncated file or another tree.
    """
    data = path.read_bytes()
    try:
        state = serialization.msgpack_restore(data)
    except Exception as error:  # msgpack and NumPy raise a dozen kinds for broken bytes
        raise ValueError(f"{path} is no whole Flax msgpack file ({error}); download or copy it again.") from error
    optimizer = state.get("optimizer") if isinstance(state, dict) else None
    raw = optimizer.get("target") if isinstance(optimizer, dict) else None
    if isinstance(state, dict) and isinstance(state.get("ema_params"), dict):
        return _distillation(state, raw, path)
    if not isinstance(raw, dict) or not isinstance(state.get("params_ema"), dict):
        found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{path} is msgpack but no score_sde state ('optimizer' and 'params_ema') and none of progressive "
            f"distillation ('ema_params'): it holds {found}."
        )
    extra = {"ema_rate": float(state["ema_rate"])} if "ema_rate" in state else {}
    notes = ("model_state is not empty and is left out.",) if state.get("model_state") else ()
    return Checkpoint(
        "score_sde_flax", flatten(raw), flatten(state["params_ema"]), None, _step(state), path, extra, notes
    )


def _distillation(state: Mapping[str, Any], raw: Any, path: Path) -> Checkpoint:
    """`extra["num_sample_steps"]`: the steps the student was made for, where the file says so."""
    ema = flatten(state["ema_params"])
    raw = raw if isinstance(raw, dict) else state.get("params")
    steps = state.get("num_sample_steps")
    extra = {} if steps is None else {"num_sample_steps": int(np.ravel(steps)[0])}
    if not isinstance(raw, dict):
        note = "The file has one set of weights, the moving average."
        return Checkpoint("distillation_flax", ema, None, None, _step(state), path, extra, (note,))
    return Checkpoint("distillation_flax", flatten(raw), ema, None, _step(state), path, extra, ())


def _step(state: Mapping[str, Any]) -> int | None:
    # A state saved from several devices has one copy of each number a device.
    return int(np.ravel(state["step"])[0]) if state.get("step") is not None else None
