"""The clock of a benchmark: CPU time on a CPU, since other jobs may share it; wall time on an accelerator."""

import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(call: Callable[[], Any], calls: int = 1) -> float:
    """Of one call, out of so many in a row; what the last one gives is waited for."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    for _ in range(calls):
        found = call()
    jax.block_until_ready(found)
    return (clock() - start) / calls
