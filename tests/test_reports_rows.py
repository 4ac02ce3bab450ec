"""Rows survive kills, tables show what rows hold, and a page keeps what is not the script's."""

import csv

import numpy as np
import pytest

from reports.rows import (
    REQUIRED,
    append_row,
    machine,
    markdown_table,
    read_rows,
    read_table,
    replace_section,
    write_csv,
)

ROW = {"machine": "2 CPU cores", "n": 16, "seed": 0, "checkpoint": "a.pth", "command": "python main.py"}


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, {**ROW, "fid": np.float32(0.5), "nfe": np.int64(3)})
    append_row(path, {**ROW, "method": "unipc µ"})
    assert read_rows(path) == [{**ROW, "fid": 0.5, "nfe": 3}, {**ROW, "method": "unipc µ"}]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_row_without_its_circumstances_is_refused(tmp_path, key):
    for row in ({name: value for name, value in ROW.items() if name != key}, ROW | {key: None}):
        with pytest.raises(ValueError, match=rf"lacks \['{key}'\]; every row needs machine, n, seed"):
            append_row(tmp_path / "rows.jsonl", row)
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_row_cut_off_by_a_kill_is_skipped_and_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {**ROW, "fid": 1})
    append_row(path, {**ROW, "fid": 2})
    path.write_bytes(path.read_bytes()[:-7])
    append_row(path, {**ROW, "fid": 3})
    assert [row["fid"] for row in read_rows(path)] == [1, 3]


def test_csv_has_every_column_of_every_row(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"a": 1, "b": "x, y"}, {"a": 2.5, "c": None}])
    with open(tmp_path / "rows.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "x, y", "c": ""}, {"a": "2.5", "b": "", "c": ""}]


def test_a_markdown_table_shows_the_chosen_columns():
    rows = [{"method": "a|b", "fid": 0.123456, "n": 1000}, {"method": "c", "fid": None, "n": 16}]
    expected = "| method | distance | n |\n| --- | ---: | ---: |\n| a\\|b | 0.1235 | 1000 |\n| c |  | 16 |\n"
    assert markdown_table(rows, {"method": "method", "fid": "distance", "n": "n"}) == expected


def test_a_script_renews_its_own_section_only(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("# Results\n<!-- pds -->\nold\n<!-- /pds -->\nprose\n<!-- ld3 -->\nkept\n<!-- /ld3 -->\n")
    replace_section(page, "pds", "| new \\1 |\n")
    assert page.read_text() == (
        "# Results\n<!-- pds -->\n| new \\1 |\n<!-- /pds -->\nprose\n<!-- ld3 -->\nkept\n<!-- /ld3 -->\n"
    )
    with pytest.raises(ValueError, match="exactly one pair of lines <!-- dsno --> and <!-- /dsno -->"):
        replace_section(page, "dsno", "")


def test_a_table_is_read_back_from_its_section(tmp_path):
    page, columns = tmp_path / "results.md", {"method": "method", "fid": "distance", "n": "n"}
    page.write_text("prose\n<!-- pds -->\n<!-- /pds -->\n")
    assert read_table(page, "pds", columns) == []
    rows = [{"method": "a|b", "fid": 0.123456, "n": 1000}, {"method": "c", "fid": None, "n": 16}]
    replace_section(page, "pds", markdown_table(rows, columns))
    found = read_table(page, "pds", columns)
    assert found == [{"method": "a|b", "fid": 0.1235, "n": 1000}, {"method": "c", "n": 16}]
    assert markdown_table(found, columns) == markdown_table(rows, columns)
    with pytest.raises(ValueError, match=r"section pds has columns \['method', 'distance', 'n'\], not \['method'"):
        read_table(page, "pds", columns | {"fid": "block Frechet"})


def test_the_machine_is_described_without_its_name():
    import platform

    assert "CPU cores" in machine() and platform.node() not in machine()
