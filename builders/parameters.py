"""config.shard_parameters: the network's parameters cut over the devices of a process (`models.sharding`)."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from array_types import Keys
from models import sharding
from models.denoiser import Denoiser
from sampling.base import Sampler

KEY = "config.shard_parameters"
MODES = ("sample", "pairs")  # those that know of it
AXIS = "data"  # of the mesh: the one that images are laid along


def place(params: Any) -> Any:
    """Parameters (as NumPy arrays, or one device holds the whole for a moment) cut over the devices of this process.

    Raises ValueError where there is one device only.
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        raise ValueError(
            f"{KEY}=True cuts the parameters over the devices of a process, and this one has one; unset it."
        )
    mesh = jax.make_mesh((len(devices),), (AXIS,), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding.lay(mesh, leaf.shape)), params)


def check_mode(config: ConfigDict | None, mode: str) -> None:
    """Raises ValueError for a mode that would put them together for good."""
    if config is not None and config.get("shard_parameters", False) and mode not in MODES:
        raise ValueError(f"{KEY}=True: --mode={mode} keeps parameters whole on a device; it is for {', '.join(MODES)}.")


def check_sampling(config: ConfigDict, devices: int, at_once: int) -> None:
    """Raises ValueError for a run in which the devices would not all make the same calls at the same time.

    at_once: how many devices config.eval.batch_size and config.sampling.step_norm leave something to do.
    """
    sampling = config.sampling
    if sampling.method == "ode":
        raise ValueError(
            f"{KEY}=True: --method=ode makes as many calls as the images of a device need, and devices that share "
            "parameters must make them together; choose a method with a fixed number of steps."
        )
    if sampling.step_norm == "batch":
        raise ValueError(f"{KEY}=True: --config.sampling.step_norm=batch draws on one device; set it to sample.")
    if at_once < devices:
        raise ValueError(
            f"{KEY}=True: {devices} devices share the parameters and draw {sampling.microbatch} images each at once, "
            f"more than --batch_size={config.eval.batch_size}; set --batch_size={devices * sampling.microbatch} or "
            "lower --config.sampling.microbatch."
        )


def gathering(sampler: Sampler) -> Sampler:
    """The sampler whose denoisers, where they have shares of parameters, put them together when they are called.

    Raises ValueError, when it begins, for one that has shares anywhere else than in a denoiser.
    """

    def is_denoiser(node: Any) -> bool:
        return isinstance(node, Denoiser)

    def wrap(node: Any) -> Any:
        axes = tuple(map(sharding.cut_axis, jax.tree.leaves(node.params if is_denoiser(node) else node)))
        if all(axis is None for axis in axes):
            return node
        if not is_denoiser(node):
            raise ValueError(f"{KEY}=True: this method does not put its network's parameters together; unset it.")
        return dataclasses.replace(node, network=sharding.Gathering(node.network, axes, AXIS, jax.local_device_count()))

    def begin(keys: Keys) -> tuple[Any, Any]:
        return jax.tree.map(wrap, sampler.begin(keys), is_leaf=is_denoiser)

    return sampler._replace(begin=begin)
