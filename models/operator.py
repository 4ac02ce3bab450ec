"""DSNO: a network that maps noise to a whole trajectory of image estimates in one pass (Zheng et al. 2023).

The M points of a trajectory are M copies of the noise in the network's batch, told their own noise levels and mixed by
the temporal layers of `models/temporal.py`. So one pass is one network call for M images' worth of work.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from array_types import Image
from models.denoiser import Denoiser

Trajectory = Float[Array, "b m h w c"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "conditions"),
    meta_fields=("network", "convention", "times", "sigma_data", "centered"),
)
@dataclasses.dataclass(frozen=True)
class Operator:
    """A network with temporal layers and the times of its outputs; a pytree whose leaves are the parameters.

    Attributes:
      params: the network's parameters.
      network: `(params, x [b M, h, w, c], labels [b M]) -> [b M, h, w, c]`, the plain network without EDM's scaling.
      convention: a `Denoiser` without parameters: its process, and what its network is told.
      times: SDE times of the M outputs, decreasing; the last is the image's.
      sigma_data: unit of the output, so that it has about unit variance: std of the data in [-1, 1].
      centered: the data range is [-1, 1], else [0, 1].
      conditions: what else the network is told, one entry an image: `classes` [b]; empty without.
    """

    params: Any
    network: Any
    convention: Denoiser
    times: tuple[float, ...]
    sigma_data: float = 0.5
    centered: bool = True
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def told_times(self) -> tuple[float, ...]:
        """`times`, but for a process that has no noise at t = 0: there the network is told the last level it knows."""
        sde = self.convention.sde
        lowest = 0.0 if sde.noise_scale(np.float64(0)) > 0 else sde.end_time
        return tuple(max(time, lowest) for time in self.times)

    def given(self, **conditions: jax.Array) -> "Operator":
        """The same operator under these conditions: `operator.given(classes=jnp.array([3, 7]))`."""
        return dataclasses.replace(self, conditions={**self.conditions, **conditions})

    def trajectory(self, noise: Image) -> Trajectory:
        """Estimates of the image at every time, [b, M, h, w, c] in the data range, from noise [b, h, w, c] ~ N(0, I).

        1 NFE, the work of M network calls.
        """
        b, m = len(noise), len(self.times)
        labels = jnp.tile(self.convention.labels(jnp.asarray(self.told_times, noise.dtype)), b)
        # The M copies of an image lie in a row, where the temporal layers look for them.
        copies, conditions = jax.tree.map(lambda part: jnp.repeat(part, m, axis=0), (noise, dict(self.conditions)))
        output = self.network(self.params, copies, labels, **conditions).reshape(b, m, *noise.shape[1:])
        return output * self.sigma_data if self.centered else (output * self.sigma_data + 1) / 2

    def __call__(self, noise: Image) -> Image:
        """The image, [b, h, w, c] in the data range: the last point of the trajectory."""
        return self.trajectory(noise)[:, -1]


def from_teacher(teacher: Any, fresh: Any, head: str = "") -> tuple[Any, list[str]]:
    """The operator's first parameters: the teacher's where it has them, fresh ones for what is new and for the head.

    Args:
      teacher: the parameter tree of the network without temporal layers.
      fresh: that of the network with them, freshly initialised.
      head: name of the last convolution, which starts anew where the teacher's predicts something else than an image;
        "" keeps it.

    Returns the parameters and the paths that are not the teacher's. Raises ValueError when the teacher has a parameter
    that the operator lacks, or of another shape: then the two are not the same network.
    """
    known = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in _leaves(teacher)}
    flat, new = [], []
    for path, leaf in _leaves(fresh):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = known.pop(name, None)
        if found is None or (head and name.startswith(f"{head}/")):
            new.append(name)
            flat.append(leaf)
        elif found.shape != leaf.shape:
            raise ValueError(f"{name} is {found.shape} in the teacher and {leaf.shape} in the operator's network.")
        else:
            flat.append(found)
    if known:
        raise ValueError(f"The operator's network has no {sorted(known)[:3]} of the teacher: another architecture?")
    return jax.tree.unflatten(jax.tree.structure(fresh), flat), new


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]
