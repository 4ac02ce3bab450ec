"""Arrays over all devices: a mesh of one axis along which images are split; what is of no image lies whole on each."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """All devices in a row, of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def spread(tree: Any, axis: int = 0) -> Any:
    """Per-image arrays split over the devices along `axis`, or whole on each where the images do not divide.

    What is computed from them runs on all devices, each on its images.
    """
    mesh = data_mesh()

    def place(leaf: Any) -> jax.Array:
        shape = np.shape(leaf)
        before = [None] * (axis % len(shape))
        spec = PartitionSpec(*before, "data") if shape[axis] % mesh.size == 0 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def whole(tree: Any) -> Any:
    """Arrays that belong to no image, such as parameters, on each device; placed once, they are not sent every call."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec()))
