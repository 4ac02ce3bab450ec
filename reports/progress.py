"""How far is it, and how long will it take? A bar on a terminal, a line in the log every tenth elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from absl import logging
from tqdm import tqdm


class Progress:
    """Counts work done, as a context manager; `update` after each piece of it.

    On a terminal a bar is drawn, and log lines appear above it. Elsewhere (a file, a batch job) a bar would be
    thousands of lines, so about one line a tenth of the work is logged, with the time that is left at this pace.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str = "step",
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`total` pieces of `what`; `terminal` overrides the test whether stderr is one, `clock` gives seconds."""
        self._total, self._what, self._unit = total, what, unit
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock

    def __enter__(self) -> Self:
        self._done, self._logged = 0, 0
        self._start = self._clock()
        if self._terminal:
            self._bar = tqdm(total=self._total, desc=self._what, unit=self._unit, dynamic_ncols=True)
            self._handler = logging.get_absl_handler().python_handler
            self._stream = self._handler.setStream(_AboveTheBar())
        return self

    def update(self, count: int = 1) -> None:
        """`count` more pieces are done."""
        self._done += count
        if self._terminal:
            self._bar.update(count)
        elif self._done * 10 // self._total > self._logged * 10 // self._total:
            self._logged = self._done
            elapsed = self._clock() - self._start
            remaining = elapsed * (self._total - self._done) / self._done
            logging.info(
                "%s: %.0f %% (%d of %d %ss), %s so far, about %s to go",
                self._what,
                100 * self._done / self._total,
                self._done,
                self._total,
                self._unit,
                format_seconds(elapsed),
                format_seconds(remaining),
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._handler.setStream(self._stream)
            self._bar.close()


def format_seconds(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _AboveTheBar:
    """A stream that prints above the bar on the terminal's last line."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()
