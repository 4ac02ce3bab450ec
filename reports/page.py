"""One HTML page that holds all it shows: styles and pictures inside, no script, nothing fetched."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.atomic import write_text

_STYLE = """
:root { color-scheme: light; --ink: #1d2330; --soft: #5b6475; --line: #e3e6ec; --tint: #f5f7fa; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 48px 32px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 52px 0 8px; }
p { margin: 0 0 14px; max-width: 74ch; }
.facts { color: var(--soft); font-size: 14px; margin-bottom: 30px; max-width: none; }
.note { color: var(--soft); font-size: 14px; }
table { border-collapse: collapse; width: 100%; margin: 14px 0 6px; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line);
  padding: 7px 12px 7px 0; }
td { border-bottom: 1px solid var(--line); padding: 8px 12px 8px 0; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.wide { overflow-x: auto; }
tr.front td { background: #eef6fb; }
td.budget { font-size: 19px; font-weight: 650; color: var(--mark); white-space: nowrap; width: 130px; }
td.use b { font-weight: 650; }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--tint);
  border: 1px solid var(--line); border-radius: 5px; padding: 5px 9px; display: block; margin-top: 7px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 16px 0 8px; }
img { max-width: 100%; display: block; border: 1px solid var(--line); border-radius: 6px; padding: 6px; }
figcaption { color: var(--soft); font-size: 14px; margin-top: 8px; max-width: 80ch; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
@media (max-width: 800px) {
  main { padding: 28px 18px 60px; }
  .pair { grid-template-columns: 1fr; }
  .wide img { max-width: none; width: 720px; }
  .choices th { display: none; }
  .choices td { display: block; width: auto; border: 0; padding: 2px 0; }
  .choices td.use { border-bottom: 1px solid var(--line); padding-bottom: 12px; }
}
@media print { h2, figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def figure(path: Path, caption: str, wide: bool = False) -> str:
    """A PNG, put into the page itself; a wide one is pushed sideways on a telephone instead of made small."""
    data = base64.b64encode(path.read_bytes()).decode()
    alt = html.escape(caption, quote=True)
    image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
    return (
        f"<figure>{f'<div class={chr(34)}wide{chr(34)}>{image}</div>' if wide else image}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def pair(*figures: str) -> str:
    return f'<div class="pair">{"".join(figures)}</div>'


def choices(rows: Sequence[tuple[str, str, str]]) -> str:
    """The recommendation: (budget, words, command or ""); what stands before the first colon is the method."""
    lines = ['<table class="choices"><tr><th>network calls</th><th>use</th></tr>']
    for budget, words, command in rows:
        code = f"<code>{html.escape(command)}</code>" if command else ""
        name, colon, rest = (html.escape(part) for part in words.partition(": "))
        said = f"<b>{name}</b>{colon}{rest}" if colon else name
        lines.append(f'<tr><td class="budget">{html.escape(budget)}</td><td class="use">{said}{code}</td></tr>')
    return "".join([*lines, "</table>"])


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], marked: Sequence[int] = ()) -> str:
    """Rows under `columns` {key: heading}, those at the places `marked` tinted; numbers to three digits.

    Words that begin with a digit, as those of an interval, stand under one another as numbers do.
    """
    numeric = {key: all(_is_number(row.get(key)) for row in rows) for key in columns}

    def cell(tag: str, key: str, text: str) -> str:
        kind = ' class="number"' if numeric[key] else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    lines = ['<div class="wide"><table><tr>', *(cell("th", key, text) for key, text in columns.items()), "</tr>"]
    for place, row in enumerate(rows):
        cells = "".join(cell("td", key, _text(row.get(key))) for key in columns)
        lines.append(f'<tr class="front">{cells}</tr>' if place in marked else f"<tr>{cells}</tr>")
    return "".join([*lines, "</table></div>"])


def write_page(path: Path, title: str, facts: str, parts: Sequence[str]) -> None:
    """Writes the page; `parts` are what the functions above return."""
    head = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
    )
    body = f'<body><main><h1>{html.escape(title)}</h1><p class="facts">{html.escape(facts)}</p>{"".join(parts)}'
    write_text(path, f"{head}{body}</main></body></html>\n")


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or str(value)[:1].isdigit()


def _text(value: Any) -> str:
    """Three digits, so that a column lines up: 1.00, 27.1, 0.0240, 110."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    size = abs(value)
    if value == 0 or not 1e-3 <= size < 1e4:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"
