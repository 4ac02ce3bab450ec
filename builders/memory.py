"""How many images go into one network call: read off the compiled call where config.sampling.microbatch is 0.

A GPU is busy with hundreds of small images at once and runs out of memory with a few large ones. What a call takes
beyond the parameters grows by the same amount with each image, so two compiled calls tell how many fit. The number is
stored with the run, since it fixes the last bits of its images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders.conditions import Take
from builders.model import Model
from builders.samplers import create_denoiser

ON_THE_CPU = 8  # images a call; more are no faster there
SHARE = 0.8  # of a device's memory to plan with: the sampler's states and the runtime need some too
GRADIENT = 3  # a call with a gradient, as guidance needs, keeps what the call without one may forget
_PROBED = (2, 4)  # images of the two calls that are compiled


def call_bytes(model: Model, config: ConfigDict, count: int) -> int:
    """What a compiled network call of `count` images takes on a device beyond its parameters."""
    denoiser = create_denoiser(model, config, Take([0], count))
    x = jax.ShapeDtypeStruct((count, *model.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((count,), jnp.float32)
    compiled = jax.jit(lambda denoiser, x, t: denoiser.output_at(x, t)).lower(denoiser, x, t).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None  # CPU, CUDA and TPU have one
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def fitting(free: float, few: int, more: int) -> int:
    """The largest power of two of images that fit into `free` bytes, where calls of _PROBED images take few and more.

    At least 1: whether one fits is for the device to say.
    """
    each = max(1.0, (more - few) / (_PROBED[1] - _PROBED[0]))
    fixed = max(0.0, few - _PROBED[0] * each)
    return 1 << max(0, int(np.log2(max(1.0, (free - fixed) / each))))


def automatic_microbatch(model: Model, config: ConfigDict, count: int) -> int:
    """Images a call: what a device holds (a power of two), what config.eval.batch_size allows, what `count` need.

    Raises ValueError where parameters are cut over devices, which a call compiled alone does not show.
    """
    if config.shard_parameters:
        raise ValueError(
            "config.shard_parameters=True with --config.sampling.microbatch=0: say how many images a device takes."
        )
    devices = jax.local_devices()
    wanted = max(1, min(config.eval.batch_size, count) // len(devices))
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return min(ON_THE_CPU, wanted)
    times = GRADIENT if config.guidance.kind != "none" else 1
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(model.denoiser.params))
    few, more = (times * call_bytes(model, config, images * config.model.num_times) for images in _PROBED)
    return min(fitting(SHARE * limit - parameters, few, more), 1 << int(np.log2(wanted)))


def is_exhausted(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)
