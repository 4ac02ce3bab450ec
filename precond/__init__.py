"""Preconditioners M of Langevin and reverse-diffusion steps, made from masks; and skew operators S, by name."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from precond.base import Identity, Preconditioner
from precond.diagonal import diagonal, even_part
from precond.fourier import FourierPreconditioner, FrequencyPreconditioner, SpacePreconditioner
from precond.skew import ChannelRotation, Commutator, Sandwich, Shift, Skewed, SkewOperator, hilbert

SKEW_OPERATORS: dict[str, Callable[[Preconditioner, int, int], SkewOperator]] = {
    "shift_x": lambda m, h, w: Shift(2),
    "shift_y": lambda m, h, w: Shift(1),
    "channel": lambda m, h, w: ChannelRotation(),
    "hilbert_x": lambda m, h, w: hilbert(2, h, w),
    "hilbert_y": lambda m, h, w: hilbert(1, h, w),
    "sandwich_shift_x": lambda m, h, w: Sandwich(m, Shift(2)),
    "sandwich_shift_y": lambda m, h, w: Sandwich(m, Shift(1)),
    "sandwich_channel": lambda m, h, w: Sandwich(m, ChannelRotation()),
    "commutator": lambda m, h, w: Commutator(m),
}


def create_preconditioner(freq: np.ndarray | None, space: np.ndarray | None, alpha: float) -> Preconditioner:
    """M from masks [h, w, c] (None: no mask), strong at small `alpha`. Diagonals are cast to float32 once, here.

    Raises ValueError for a frequency mask that is not even, or an alpha the masks do not allow.
    """
    if freq is not None:
        freq = diagonal(even_part(freq, "The frequency mask"), alpha, "the frequency mask")
    if space is not None:
        space = diagonal(space, alpha, "the space mask")
    match (freq is not None, space is not None):
        case (True, True):
            return FourierPreconditioner(jnp.float32(freq), jnp.float32(space))
        case (True, False):
            return FrequencyPreconditioner(jnp.float32(freq))
        case (False, True):
            return SpacePreconditioner(jnp.float32(space))
    return Identity()


def create_skew(name: str, preconditioner: Preconditioner, omega: float, height: int, width: int) -> Preconditioner:
    """`preconditioner` with the circulation config.sampling.skew = `name` of strength `omega`; "" adds none.

    Raises ValueError for an unknown name, and for a commutator without the two masks that make it more than zero.
    """
    if not name:
        return preconditioner
    if name not in SKEW_OPERATORS:
        raise ValueError(f"config.sampling.skew={name!r} is unknown; choose one of {sorted(SKEW_OPERATORS)} or ''.")
    if name == "commutator" and not isinstance(preconditioner, FourierPreconditioner):
        raise ValueError("config.sampling.skew='commutator' is zero without a frequency and a space mask; set both.")
    skew = SKEW_OPERATORS[name](preconditioner, height, width)
    return Skewed(preconditioner, skew, jnp.float32(omega))
