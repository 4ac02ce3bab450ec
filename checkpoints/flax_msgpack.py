"""The training state of the original JAX score_sde, as Flax msgpack (`checkpoint_<n>`, without an extension).

The file holds step, optimizer {target, state}, lr, model_state, ema_rate, params_ema and rng. The optimizer class that
wrote it has left Flax, so the bytes are restored without a target, into nested dicts: `params_ema` are the averaged
weights (the Fourier `W` included), `optimizer/target` the raw ones.
"""

from pathlib import Path

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
    if not isinstance(raw, dict) or not isinstance(state.get("params_ema"), dict):
        found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{path} is msgpack but no score_sde state: 'optimizer' and 'params_ema' are needed, not {found}."
        )
    extra = {"ema_rate": float(state["ema_rate"])} if "ema_rate" in state else {}
    notes = ("model_state is not empty and is left out.",) if state.get("model_state") else ()
    step = int(state["step"]) if "step" in state else None
    return Checkpoint("score_sde_flax", flatten(raw), flatten(state["params_ema"]), None, step, path, extra, notes)
