"""Log lines come every tenth with a fair estimate; a bar lets log lines pass above it."""

import pytest
from absl import logging

from reports import progress
from reports.progress import Progress, format_seconds


def lines_of(monkeypatch, total, pieces, seconds_each=2.0):
    lines, now = [], [100.0]
    monkeypatch.setattr(progress.logging, "info", lambda message, *values: lines.append(message % values))
    with Progress(total, "sampling", terminal=False, clock=lambda: now[0]) as bar:
        for piece in pieces:
            now[0] += seconds_each * piece
            bar.update(piece)
    return lines


def test_a_line_is_logged_every_tenth_with_the_time_left(monkeypatch):
    lines = lines_of(monkeypatch, 50, [1] * 50)
    assert len(lines) == 10
    assert lines[0] == "sampling: 10 % (5 of 50 steps), 10 s so far, about 1 min 30 s to go"
    assert lines[-1] == "sampling: 100 % (50 of 50 steps), 1 min 40 s so far, about 0.0 s to go"


def test_large_pieces_log_once_each(monkeypatch):
    assert len(lines_of(monkeypatch, 50, [20, 20, 10])) == 3


def test_a_short_job_logs_every_piece(monkeypatch):
    assert len(lines_of(monkeypatch, 3, [1, 1, 1])) == 3


def test_on_a_terminal_a_bar_counts_and_log_lines_stay_whole(capsys):
    handler = logging.get_absl_handler().python_handler
    before = handler.stream
    with pytest.raises(KeyboardInterrupt), Progress(4, "sampling", terminal=True) as bar:
        bar.update(3)
        handler.stream.write("W0101 a warning\n")
        handler.stream.flush()
        raise KeyboardInterrupt
    assert handler.stream is before
    shown = capsys.readouterr().err
    assert "3/4" in shown and "sampling: " in shown
    assert "W0101 a warning\n" in shown.replace("\r", "\n\r").split("\n\r", 1)[1]


@pytest.mark.parametrize(
    "seconds, words",
    [(0.44, "0.4 s"), (9.97, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_seconds_are_worded(seconds, words):
    assert format_seconds(seconds) == words
