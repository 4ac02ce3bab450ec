"""--mode=compare and --mode=report on a model without weights: a plan that fits the time, resumed runs, one page."""

import json
from html.parser import HTMLParser

import pytest

import run_lib
from modes import compare, report, sample
from modes.request import Request
from modes.sweep import draw_command
from reports import rows


def config_of():
    config = run_lib.load_config_file("configs/ve/analytic.py")
    config.data.image_size = 8
    config.eval.reference = ""
    config.sampling.microbatch = 2
    return config


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "CANDIDATES", (("unipc", 4), ("ddim", 4), ("pds", 4), ("gs", 5), ("heun", 3)))
        patch.setattr(compare, "SIZES", (4,))
        patch.setattr(compare, "REFERENCE", {"sampling.method": "heun", "sampling.num_steps": 12})
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("W")
    compare.run(Request(config_of(), folder))
    return folder


def table(workdir):
    return rows.read_rows(workdir / "results.jsonl")


def test_every_method_that_the_model_has_is_a_row_drawn_from_equal_noise(workdir):
    found = {row["method"]: row for row in table(workdir)}
    assert set(found) == {"unipc", "ddim", "pds", "heun"}, "no learned schedule is there, so gs is left out"
    assert [found[method]["calls"] for method in ("unipc", "ddim", "heun")] == [4, 4, 5]
    assert 0 < found["unipc"]["distance"] < found["ddim"]["distance"]
    assert "distance" not in found["pds"], "noise that is added makes it another image"
    assert len(found["ddim"]["grid"].split(",")) == 5
    plan = json.loads((workdir / "compare.json").read_text())
    assert plan["n"] == 4 and plan["format"] == "comparison"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.links, self.text = [], [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value for key, value in attributes if key == "src"]
        self.links += [value for key, value in attributes if key == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags are closed in order"


def test_the_page_is_whole_holds_its_pictures_and_fetches_nothing(workdir):
    page = Page((workdir / "report" / "index.html").read_text())
    assert page.open == [] and page.links == []
    assert len(page.sources) == 4 and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in page.text and "<script" not in page.text
    assert "--method=unipc --steps=4" in page.text
    assert "method=pds,num_steps=4" in page.text, "what cannot be judged is said"


def test_a_comparison_that_was_killed_goes_on_with_its_plan(workdir, tmp_path, monkeypatch):
    drawn, draw = [], sample.run

    def killed(request):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(request.overrides["eval.eval_folder"])
        draw(request)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample, "run", killed)
        compare.run(Request(config_of(), tmp_path))
    assert len(table(tmp_path)) == 2
    compare.run(Request(config_of(), tmp_path, minutes=0.0))  # no time is asked about: there is a plan
    for key in ("point", "distance", "calls", "n"):
        assert [row.get(key) for row in table(tmp_path)] == [row.get(key) for row in table(workdir)]


def test_a_dry_run_draws_nothing(tmp_path):
    compare.run(Request(config_of(), tmp_path / "W", dry_run=True))
    assert not (tmp_path / "W").exists()


def test_too_little_time_and_another_model_are_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match=r"--minutes=0.01 is too short: a network call takes .* s an image here"):
        compare.run(Request(config_of(), tmp_path, minutes=0.01))
    plan = json.loads((workdir / "compare.json").read_text())
    (tmp_path / "compare.json").write_text(json.dumps(plan | {"weights": "another"}))
    with pytest.raises(ValueError, match="the comparison here is of weights another"):
        compare.run(Request(config_of(), tmp_path))
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(ValueError, match="is no plan of a comparison"):
        compare.run(Request(config_of(), tmp_path))


def test_a_report_of_nothing_or_of_mixed_rows_is_refused(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="results.jsonl is not there: measure something first"):
        report.run(Request(None, tmp_path))
    for row in (*table(workdir), table(workdir)[0] | {"point": "other", "seed": 9}):
        rows.append_row(tmp_path / "results.jsonl", row)
    with pytest.raises(ValueError, match="mixes rows whose 'seed' differs"):
        report.run(Request(None, tmp_path))


def test_the_command_of_a_point_is_that_of_the_sweep_with_the_point_in_it():
    argv = [
        "main.py",
        "--mode=sweep",
        "--config",
        "c.py:pds",
        "--workdir=W",
        "--sweep",
        "steps=5,10",
        "--num_samples=9",
    ]
    point = {"sampling.num_steps": 5, "sampling.snr": 0.1, "sampling.freq_mask_path": "my mask.npy"}
    assert draw_command(argv, point) == (
        "python main.py --config c.py:pds --workdir=W --steps=5 --config.sampling.snr=0.1 "
        "'--freq_mask_path=my mask.npy'"
    )
