"""Several processes that share one run, one a host or one a group of devices: how they meet, agree and wait.

The engine is JAX's own (`jax.distributed`). Images need nothing from one another, so that sampling only shares them out
and waits at the end; training lays its batch over the devices of all processes. They all write to one folder, which
must be on storage that they share; what is written once (records, logs, packed files) is written by the first.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

Item = TypeVar("Item")
SECONDS_TO_SEE = 60  # what another process has written


class Cluster(NamedTuple):
    """How the processes find one another. All three empty: as SLURM, Open MPI, Kubernetes or a TPU pod tell JAX."""

    coordinator: str = ""  # HOST:PORT of the first process
    num_processes: int | None = None
    process_id: int | None = None


def join(cluster: Cluster) -> None:
    """Meets the other processes; must come before the first computation. All but the first log warnings only.

    Raises ValueError for flags that do not say a cluster, and where none is recognised without them.
    """
    given = [bool(cluster.coordinator), cluster.num_processes is not None, cluster.process_id is not None]
    if any(given) and not all(given):
        raise ValueError(
            f"--coordinator={cluster.coordinator} --num_processes={cluster.num_processes} "
            f"--process_id={cluster.process_id}: give all three, or none of them where the cluster is recognised."
        )
    if all(given):
        _check(*cluster)
    try:
        jax.distributed.initialize(cluster.coordinator or None, cluster.num_processes, cluster.process_id)
    except ValueError as error:
        raise ValueError(
            f"--distributed: no cluster was recognised ({error}) Name it with --coordinator=HOST:PORT "
            "--num_processes=N --process_id=K, K from 0 to N - 1 and HOST that of process 0."
        ) from error
    if not is_first():
        logging.set_verbosity(logging.WARNING)
    logging.info("Process %d of %d.", jax.process_index(), jax.process_count())


def _check(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator={coordinator!r} is not HOST:PORT, such as 10.0.0.1:1234.")
    assert num_processes is not None and process_id is not None
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id} with --num_processes={num_processes}: processes are numbered from 0 to "
            f"{num_processes - 1}."
        )


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def as_first_sees(flags: Sequence[bool]) -> list[bool]:
    """`flags` as the first process has them: what all must decide alike, such as which files are there."""
    if jax.process_count() == 1:
        return list(flags)
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(flags, bool))).tolist()


def share(items: Sequence[Item], process: int | None = None, count: int | None = None) -> list[Item]:
    """What of `items` is this process's to do: every count-th, in order. Shares differ by one item at most."""
    process = jax.process_index() if process is None else process
    return list(items[process :: count or jax.process_count()])


def collect(rows: np.ndarray, count: int) -> np.ndarray:
    """[count, ...] on every process, from the rows [n, ...] that each has made of its `share(range(count))`."""
    processes = jax.process_count()
    if processes == 1:
        return rows[:count]
    most = -(-count // processes)
    padded = np.pad(rows[:most], [(0, most - len(rows[:most]))] + [(0, 0)] * (rows.ndim - 1))
    shares = np.asarray(multihost_utils.process_allgather(padded))  # [processes, most, ...]
    return shares.swapaxes(0, 1).reshape(most * processes, *rows.shape[1:])[:count]


def until_seen(lacking: Callable[[], Sequence[Path]]) -> None:
    """Returns when files that other processes have written are seen here: shared storage takes a while to show them.

    Raises OSError naming the first that is not seen after SECONDS_TO_SEE.
    """
    if jax.process_count() == 1:
        return
    for _ in range(SECONDS_TO_SEE):
        if not lacking():
            return
        time.sleep(1)
    if paths := lacking():
        raise OSError(
            f"{paths[0]} and {len(paths) - 1} more were written by other processes but are not seen here: --workdir "
            "must be on storage that all of them share."
        )


def wait(what: str) -> None:
    """Returns when all processes have come here, however long that takes. Raises OSError if one of them has ended."""
    try:
        multihost_utils.sync_global_devices(what)
    except jax.errors.JaxRuntimeError as error:
        raise OSError(
            f"Another process of this run ended before its {what} ({str(error).splitlines()[0]}). What is written is "
            "whole: run the same command again, with as many processes as you like."
        ) from error
