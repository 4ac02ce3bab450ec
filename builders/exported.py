"""A finished sampler as one program that runs without this toolkit: numbers of images in, images out."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders.model import Model
from sampling.base import Sampler

PLATFORMS = ("cpu", "cuda", "tpu")


def create_program(model: Model, sampler: Sampler, config: ConfigDict) -> jax.export.Exported:
    """`call(seed, indices)`: uint32 [] and [b], any b -> images [b, h, w, c], float32 in [0, 1].

    Image i is the one that `--config.seed` and `--seeds i` draw here, to rounding. The weights, the whole loop and the
    random numbers are inside. Raises ValueError for a sampler that is given something with each image.
    """
    if sampler.of is not None:
        raise ValueError(
            "--mode=export: this sampler is given a condition with each image (labels, a start image, a guidance "
            "task), which the exported program has no argument for; leave --labels, --start_image and guidance out."
        )
    if config.sampling.step_norm == "batch":
        raise ValueError(
            "--config.sampling.step_norm=batch ties the images of a batch to one another, and an exported program "
            "takes batches of any size; set --config.sampling.step_norm=sample."
        )
    low, high = model.data_range

    def call(seed: jax.Array, indices: jax.Array) -> jax.Array:
        operands, state = sampler.begin(jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices))
        dtype = next(leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating))

        def cast(leaf: np.ndarray) -> Any:
            return leaf.astype(dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf

        rows = jax.tree.map(lambda leaf: jnp.asarray(cast(np.asarray(leaf))), sampler.rows)
        state, _ = jax.lax.scan(lambda state, row: (sampler.step(operands, state, row)[0], None), state, rows)
        drawn = sampler.image(state).astype(jnp.float32)
        drawn = drawn if model.codec is None else model.codec.to_images(drawn)
        return jnp.clip((drawn - low) / (high - low), 0, 1)

    (batch,) = jax.export.symbolic_shape("b")
    arguments = (jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((batch,), jnp.uint32))
    return jax.export.export(jax.jit(call), platforms=PLATFORMS)(*arguments)
