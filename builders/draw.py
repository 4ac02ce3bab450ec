"""Runs a sampler for a list of images: on all devices of this process, the same bits however many there are."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders import parameters
from builders.model import Model
from builders.samplers import create_sampler
from reports.images import to_uint8
from sampling import base
from sampling.base import Sampler, SampleResult


def image_keys(seed: int, indices: Sequence[int]) -> jax.Array:
    """The key of each image: fold_in(key(config.seed), index). Its start noise is normal(key)."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(indices, jnp.uint32))


class Group(NamedTuple):
    """The images of one run of the compiled sampler."""

    indices: list[int]  # of the images, without padding
    result: SampleResult
    memory: Callable[[], int | None]  # looks up the bytes that its program takes on a device, in some milliseconds


def _microbatch(config: ConfigDict) -> int:
    microbatch = config.sampling.microbatch
    if microbatch < 1:
        raise ValueError(
            f"config.sampling.microbatch={microbatch} must be at least 1; only --mode=sample chooses one where it is 0."
        )
    return microbatch


def blocks(config: ConfigDict, seeds: Sequence[int]) -> list[list[int]]:
    """The images of each network call of a device: `sampling.microbatch` at a time, in the order of the list.

    They are cut from the whole list, so that every device, process and resumed run agrees on them and gets equal bits.
    """
    microbatch = _microbatch(config)
    return [list(seeds[start : start + microbatch]) for start in range(0, len(seeds), microbatch)]


def group_size(config: ConfigDict, count: int) -> tuple[list[jax.Device], int]:
    """The devices of this process that `count` images keep busy, and how many images they take at once."""
    microbatch = _microbatch(config)
    # Batch-mean step sizes tie the images of a group to one another: they stay on one device.
    limit = 1 if config.sampling.step_norm == "batch" else max(1, config.eval.batch_size // microbatch)
    devices = jax.local_devices()[: min(limit, -(-count // microbatch))]
    if config.shard_parameters:  # every device has a share of them, so all make each call, on padding if need be
        devices = jax.local_devices()
        parameters.check_sampling(config, len(devices), limit)
    return devices, microbatch * len(devices)


def sample_groups(
    model: Model,
    sampler: Sampler,
    config: ConfigDict,
    seeds: Sequence[int],
    skip: Callable[[list[int]], bool] = lambda indices: False,
    on_steps: Callable[[int], None] = lambda steps: None,
) -> Iterator[Group]:
    """Runs `sampler` for the images `seeds`, group by group, on the devices of this process.

    A group is one call of the program, with one of `blocks(config, seeds)` on each device; the last is padded.
    `skip(indices)` leaves a block out, `on_steps(n)` reports n steps done.
    """
    todo = [block for block in blocks(config, seeds) if not skip(block)]
    if not todo:
        return
    devices, size = group_size(config, sum(map(len, todo)))
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
    for start in range(0, len(todo), len(devices)):
        indices = [index for block in todo[start : start + len(devices)] for index in block]
        padded = indices + [indices[-1]] * (size - len(indices))  # only the last block can be short
        begun = sampler.of(padded) if sampler.of else sampler
        begun = parameters.gathering(begun) if config.shard_parameters else begun
        operands, state = base.begin_on(mesh, begun, image_keys(config.seed, padded))
        records, before = [], 0
        chunks = base.iterate_chunks(sampler.step, operands, state, sampler.rows, config.sampling.chunk)
        for state, record, done in chunks:
            jax.block_until_ready(state)  # or the bar would show what was asked for, not what is done
            records.append(record)
            on_steps(done - before)
            before = done
        memory = functools.partial(
            base.chunk_memory, sampler.step, operands, state, sampler.rows, config.sampling.chunk
        )
        yield Group(indices, _result(sampler, state, records, len(indices)), memory)


def _result(sampler: Sampler, state: Any, records: list[Any], count: int) -> SampleResult:
    images = np.asarray(sampler.image(state))[:count]
    if sampler.calls:
        calls = np.asarray(sampler.calls(state))[:count]
        sampler = sampler._replace(nfe=int(calls.max()))
    else:
        calls = None
    if not jax.tree.leaves(records):
        return SampleResult(images, sampler.nfe, sampler.gradient_calls, calls=calls)
    trajectory, denoised = (np.concatenate([np.asarray(part[k]) for part in records])[:, :count] for k in (0, 1))
    return SampleResult(images, sampler.nfe, sampler.gradient_calls, trajectory, denoised, calls)


def sample(
    model: Model,
    sampling: ConfigDict | Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(16),
    record: bool = False,
) -> SampleResult:
    """Images number `seeds` of a model.

    Args:
      sampling: changes to config.sampling, such as {"method": "pds", "speed_up": 20}.
      seeds: indices under config.seed; image i depends on (config.seed, i, settings) alone.
      record: also return the states and the x0 estimates after every update.

    Returns images [n, h, w, c] in the model's data range, as NumPy arrays, with the count of network calls; latents of
    a model that draws these (`model.decode`, `to_pixels`).
    """
    config = copy.deepcopy(model.config)
    with config.unlocked():
        config.sampling.update(dict(sampling or {}))
    sampler = create_sampler(model, config, record)
    results = [group.result for group in sample_groups(model, sampler, config, seeds)]
    joined = [
        None if results[0][k] is None else np.concatenate([r[k] for r in results], axis)
        for k, axis in ((0, 0), (3, 1), (4, 1), (5, 0))
    ]
    return SampleResult(joined[0], max(r.nfe for r in results), sampler.gradient_calls, *joined[1:])


def to_pixels(model: Model, images: np.ndarray) -> np.ndarray:
    """What the model drew to uint8, decoded where it is latents, rounded and clamped."""
    low, high = model.data_range
    return to_uint8((model.decode(images) - low) / (high - low))
