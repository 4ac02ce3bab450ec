"""docs/reference.md is what the code says now, and the links between pages are looked after."""

import subprocess
import sys

import pytest

from benchmarks import check_links, reference_page
from configs import base, methods


def test_the_reference_is_up_to_date():
    page = reference_page.create_page()
    assert reference_page.PAGE.read_text() == page, "write it anew: python -m benchmarks.reference_page"


def test_every_key_and_method_is_in_the_reference_with_its_meaning():
    listed = {
        f"{section}.{key.strip('`')}".lstrip(".")
        for section, _, rows in reference_page.keys(reference_page.ROOT)
        for key, _, meaning in rows
    }
    assert listed == {key for key, _ in _leaves(base.get_config().to_dict())}
    assert set(reference_page.methods(reference_page.ROOT)) == set(methods.METHODS)
    page = reference_page.create_page()
    assert "| `snr` | `0.16` | of a corrector step: sets its length |" in page
    assert "| `--steps` |  | Number of levels or steps. | `sampling.num_steps` |" in page


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Two words: here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#two-words-here) ![c](other.md) [d](#own) [e](mailto:x) `[f](code.md)`\n\n## Own\n\n"
        "    [g](indented.md)\n\n[h](gone.md) [i](other.md#gone)\n"
    )
    assert [line.partition(": ")[2] for line in check_links.broken_links(page)] == [
        "gone.md is not there",
        "other.md#gone is no heading there",
    ]


def test_the_check_passes_on_this_project_and_fails_on_a_broken_link(tmp_path, monkeypatch):
    program = [sys.executable, "-m", "benchmarks.check_links"]
    assert subprocess.run(program, cwd=check_links.ROOT, capture_output=True, text=True).returncode == 0
    (tmp_path / "page.md").write_text("[a](gone.md)\n")
    monkeypatch.setattr(check_links, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="gone.md is not there"):
        check_links.main()
