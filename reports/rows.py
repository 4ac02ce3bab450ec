"""Results as rows: one JSON object a line while they come in, CSV and Markdown tables made from them.

A row without its circumstances is worthless, so five keys are obligatory: machine, n (images), seed, checkpoint and
command. Rows are flat: numbers, words, True or False, or None.
"""

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from reports.atomic import write_text

Row = Mapping[str, Any]

REQUIRED = ("machine", "n", "seed", "checkpoint", "command")


def machine() -> str:
    """The devices and the cores at hand, in words; no host name."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} x {kind}, {os.cpu_count()} cores" if kind != "cpu" else f"{os.cpu_count()} CPU cores"


def append_row(path: str | Path, row: Row) -> None:
    """Adds a row to a JSON-lines file, creating it if need be. One write of one line: a kill leaves it whole or cut.

    Raises ValueError when an obligatory key is missing.
    """
    missing = [key for key in REQUIRED if row.get(key) is None]
    if missing:
        raise ValueError(f"A result row for {path} lacks {missing}; every row needs {', '.join(REQUIRED)}.")
    line = json.dumps(dict(row), default=lambda value: value.item()) + "\n"
    with open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the last writer was killed within its line
                line = "\n" + line
        file.write(line.encode())


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file in order; none if there is no file.

    A line that was cut off by a kill is skipped with a warning: that row did not finish and will be redone.
    """
    rows: list[dict[str, Any]] = []
    if not Path(path).exists():
        return rows
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logging.warning("%s:%d is cut off and was skipped", path, number)
    return rows


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """All rows as CSV, atomically; columns are all keys in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def markdown_table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """A Markdown table of the given columns, {key: heading}; numbers to four digits, right-aligned."""
    numeric = {key: all(isinstance(row.get(key), int | float | None) for row in rows) for key in columns}
    lines = [
        "| " + " | ".join(columns.values()) + " |",
        "| " + " | ".join("---:" if numeric[key] else "---" for key in columns) + " |",
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(key)) for key in columns) + " |")
    return "\n".join(lines) + "\n"


def read_table(path: str | Path, name: str, columns: Mapping[str, str]) -> list[Row]:
    """The rows of the `markdown_table` of these columns in section `name` of a page, as far as four digits tell them.

    Empty cells are left out; an empty section has no rows. Raises as `replace_section`, and ValueError where the
    headings are others.
    """
    heads, _, *lines = [_cells(line) for line in _section(path, name).splitlines()[1:-1]] or [
        list(columns.values())
    ] * 2
    if heads != list(columns.values()):
        raise ValueError(f"{path}: the table in section {name} has columns {heads}, not {list(columns.values())}.")
    return [{key: _value(cell) for key, cell in zip(columns, line, strict=True) if cell} for line in lines]


def replace_section(path: str | Path, name: str, text: str) -> None:
    """Puts `text` between `<!-- name -->` and `<!-- /name -->` in a page, so that a script renews its own table only.

    Raises FileNotFoundError or ValueError when the page or the two markers are not there.
    """
    old = _section(path, name)
    start, end = old.splitlines()[0], old.splitlines()[-1]
    write_text(path, Path(path).read_text().replace(old, f"{start}\n{text.strip()}\n{end}"))


def _section(path: str | Path, name: str) -> str:
    """The text of a section of a page, with the two lines that mark it."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    found = re.findall(re.escape(start) + ".*?" + re.escape(end), Path(path).read_text(), re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{path} needs exactly one pair of lines {start} and {end} around the text to renew.")
    return found[0]


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _value(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
