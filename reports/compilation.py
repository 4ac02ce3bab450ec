"""How long did compiling take, and how long the work itself? JAX reports each piece of compilation; we listen."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from jax import monitoring

_OF_COMPILATION = "/jax/core/compile/"  # tracing, lowering, and at last:
_MAKES_A_PROGRAM = f"{_OF_COMPILATION}backend_compile_duration"  # XLA's part, or reading its result from the disk

Span = tuple[float, float]


class CompileClock:
    """Seconds that JAX spends on tracing, lowering and compiling while this is open; a context manager.

    A program that this process has compiled before takes none; one found in the cache on disk takes its reading. What
    runs between two compilations is not counted, so the rest of a measured time is the work itself.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """`clock` gives seconds."""
        self._clock = clock
        self._spans: list[Span] = []
        self._unfinished: list[Span] = []

    def __enter__(self) -> Self:
        monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        monitoring.unregister_event_duration_listener(self._hear)

    @property
    def seconds(self) -> float:
        return covered(self._spans)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Called at the end of each piece."""
        del kwargs
        if event.startswith(_OF_COMPILATION):
            now = self._clock()
            self._unfinished.append((now - duration_secs, now))
        if event == _MAKES_A_PROGRAM:  # else something was traced for its shapes alone
            self._spans += self._unfinished
            self._unfinished = []


def covered(spans: Sequence[Span]) -> float:
    """Length of the union of spans (start, end): the tracing of a function contains that of those it calls."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
