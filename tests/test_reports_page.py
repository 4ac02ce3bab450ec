"""The page: words are escaped, numbers line up, and what is too wide for a telephone is pushed sideways."""

import numpy as np
import pytest

from modes import report
from reports import page
from reports.images import write_png


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.00"),
        (27.123, "27.1"),
        (0.0240, "0.0240"),
        (110.4, "110"),
        (0.0, "0"),
        (2e-5, "2e-05"),
        (-0.0331, "-0.0331"),
    ]
    + [(5, "5"), (None, ""), ("pc", "pc"), (123456.0, "1.23e+05"), (float("nan"), "nan")],
)
def test_a_number_has_three_digits(value, text):
    assert f"<td>{text}</td>" in page.table([{"a": value}, {"a": "-"}], {"a": "b"})


def test_numbers_and_intervals_stand_on_the_right_and_marked_rows_are_tinted():
    rows = [{"m": "pc", "n": 5, "i": "0.7 – 1.2"}, {"m": "<b>", "n": None, "i": None}]
    text = page.table(rows, {"m": "method", "n": "calls", "i": "interval"}, marked=[1])
    assert '<td>pc</td><td class="number">5</td><td class="number">0.7 – 1.2</td>' in text
    assert '<tr class="front"><td>&lt;b&gt;</td><td class="number"></td>' in text
    assert text.startswith('<div class="wide"><table>') and text.endswith("</table></div>")


def test_a_choice_names_its_method_in_bold_above_the_command():
    text = page.choices([("5 to 100+", "ld3, 5 calls: distance 1 & less.", "python main.py"), ("1", "Nothing.", "")])
    assert '<td class="use"><b>ld3, 5 calls</b>: distance 1 &amp; less.<code>python main.py</code></td>' in text
    assert '<td class="budget">1</td><td class="use">Nothing.</td>' in text


def test_a_wide_picture_can_be_pushed(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert page.figure(tmp_path / "a.png", "x", wide=True).startswith(
        '<figure><div class="wide"><img alt="x" src="data:'
    )
    assert "wide" not in page.figure(tmp_path / "a.png", "x")


def test_methods_on_one_grid_share_a_line(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report.plots, "plot_grids", lambda path, grids: drawn.extend(grids) or write_png(path, PIXEL))
    names = ("unipc", "ddim", "deis", "dpmpp", "heun", "unipc")
    rows = [{"series": name, "grid": "5,1,0"} for name in names] + [
        {"series": "ld3", "grid": "5,2,1,0"},
        {"series": "pc"},
    ]
    report._grids(tmp_path, rows)
    assert [name for name, _ in drawn] == ["unipc, ddim, deis, dpmpp and 1 more", "ld3"]
    assert [grid.tolist() for _, grid in drawn] == [[5, 1, 0], [5, 2, 1, 0]]
    assert report._grids(tmp_path, [{"series": "pc"}]) == []


PIXEL = np.zeros((1, 1, 3), np.uint8)


def test_off_the_front_each_method_is_shown_once_before_any_is_shown_again():
    rows = [{"series": name, "calls": calls} for name, calls in (("a", 1), ("a", 5), ("b", 5), ("a", 9), ("c", 10))]
    shown = report._each_first(rows, rows[:1])
    assert [(row["series"], row["calls"]) for row in shown] == [("a", 5), ("b", 5), ("c", 10), ("a", 9)]


def test_a_failure_is_shown_until_its_point_was_measured(tmp_path):
    (tmp_path / "failures.jsonl").write_text('{"point": "a", "error": "x"}\n{"point": "b", "error": "<y>"}\n' * 2)
    text = "".join(report._rest(tmp_path, [], {"a"}))
    assert text.count("&lt;y&gt;") == 1 and "<td>a</td>" not in text
    assert report._rest(tmp_path, [], {"a", "b"}) == []
