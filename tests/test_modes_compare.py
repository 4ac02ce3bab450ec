"""--mode=compare and --mode=report on a model without weights: a plan that fits the time, resumed runs, one page."""

import json
import os
import types
from html.parser import HTMLParser

import numpy as np
import pytest

import run_lib
from builders import ld3
from modes import compare, report, sample
from modes.compare_learning import create_learning, stopwatch
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
    assert found["ddim"]["distance_low"] < found["ddim"]["distance"] < found["ddim"]["distance_high"]
    assert len(found["ddim"]["grid"].split(",")) == 5
    plan = json.loads((workdir / "compare.json").read_text())
    assert plan["n"] == 4 and plan["format"] == "comparison"


def test_the_interval_of_a_distance_is_that_of_a_mean():
    found = compare.distance(np.array([0.1, 0.2, 0.3, 0.4]))
    assert found == pytest.approx(
        {"distance": 0.25, "distance_low": 0.25 - 0.126514, "distance_high": 0.25 + 0.126514}, abs=1e-5
    )


def test_a_row_says_what_compiling_and_drawing_took_and_how_much_memory(workdir):
    found = {row["method"]: row for row in table(workdir)}
    assert found["ddim"]["compile_seconds"] == 0, "the call that was timed before left its program"
    assert found["pds"]["compile_seconds"] > 0 and all(row["steady_seconds"] > 0 for row in found.values())
    images = 2 * 8 * 8 * 3 * 4  # bytes of the two of a network call
    assert all(images < row["peak_memory"] < 1e7 for row in found.values())
    assert json.loads(found["unipc"]["config"])["sampling"]["method"] == "unipc"


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
    assert len(page.sources) == 5 and all(source.startswith("data:image/png;base64,") for source in page.sources)
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


def test_a_method_that_diverges_is_written_down_and_the_others_are_compared(workdir, tmp_path, monkeypatch):
    draw = sample.run

    def diverges(request):
        if request.overrides["eval.eval_folder"] == "compare/method=ddim,num_steps=4":
            raise ValueError("The images hold NaN or infinity: <the sampler> diverged.")
        draw(request)

    monkeypatch.setattr(sample, "run", diverges)
    compare.run(Request(config_of(), tmp_path))
    assert {row["method"] for row in table(tmp_path)} == {"unipc", "pds", "heun"}
    text = (tmp_path / "report" / "index.html").read_text()
    assert "What failed" in text and "NaN or infinity: &lt;the sampler&gt; diverged" in text


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


LEARNED = "method=ld3,num_steps=5,learned_here"


@pytest.fixture
def quick(monkeypatch):
    """A task of five calls, made without the numbers that are learned, which take seconds to compile."""
    create_task = ld3.create_task

    def made(model, config):
        if config.guidance.kind != "none":
            return create_task(model, config)
        student = types.SimpleNamespace(calls=lambda steps, to_zero: steps)
        problem = types.SimpleNamespace(student=student, space=types.SimpleNamespace(to_zero=True))
        return types.SimpleNamespace(problem=problem, num_steps=config.sampling.num_steps)

    monkeypatch.setattr(ld3, "create_task", made)


@pytest.mark.slow
def test_the_learned_schedule_of_a_small_model_is_nearer_than_the_solver_it_was_learned_for(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "CANDIDATES", (("unipc", 5),))
    monkeypatch.setattr(compare.compare_learning, "EFFORTS", ((8, 4, 4, 4),))
    config = config_of()
    config.ld3.update(teacher_steps=10, start="edm")
    compare.run(Request(config, tmp_path, minutes=60.0, train="ld3"))
    plain, learned = table(tmp_path)
    assert learned["point"] == LEARNED and learned["learning_seconds"] > 0
    assert learned["calls"] == plain["calls"] == 5 and learned["distance"] < plain["distance"]
    text = (tmp_path / "report" / "index.html").read_text()
    assert "Its schedule was learned here in" in text and "--mode=train" in text


def test_a_schedule_that_is_learned_is_one_more_row_with_its_minutes_and_commands(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(compare, "CANDIDATES", (("unipc", 4),))
    monkeypatch.setattr(report, "write_report", lambda workdir, config: workdir)
    learned = []

    def learn(model, config, task, folder):
        learned.append((config.ld3.optimizer, config.ld3.num_train, task.num_steps, config.training.num_steps))
        scales = np.append(np.geomspace(378.0, 0.02, 5), 0.0)
        (folder / "ld3" / "ld3_5.json").write_text(json.dumps(scales.tolist()))

    monkeypatch.setattr(compare.compare_learning.train_ld3, "learn", learn)
    asked = Request(config_of(), tmp_path, minutes=60.0, train="ld3")
    compare.run(asked._replace(dry_run=True))
    assert not learned and not list(tmp_path.iterdir())
    compare.run(asked)
    first, last = table(tmp_path)
    assert learned == [("gauss_newton", 48, 5, 8)] and last["point"] == LEARNED
    assert (last["method"], last["calls"], last["learning_seconds"] >= 0) == ("ld3", 5, True)
    assert last["distance"] > 0 and len(last["grid"].split(",")) == 6
    assert last["draw"].endswith(f"--method=ld3 --steps=5 --config.sampling.schedule={tmp_path / 'ld3' / 'ld3_5.json'}")
    assert last["learn"].startswith("python main.py --mode=train ") and "--config.ld3.num_train=48" in last["learn"]
    plan = json.loads((tmp_path / "compare.json").read_text())
    assert plan["learning"]["calls"] == 5 and list(plan["points"])[-1] == LEARNED
    (tmp_path / "results.jsonl").write_text(json.dumps(first) + "\n")
    compare.run(asked._replace(minutes=0.0))  # goes on with its plan
    assert [row["point"] for row in table(tmp_path)] == [first["point"], LEARNED] and len(learned) == 2


def test_where_no_schedule_can_be_learned_the_reason_is_said_before_anything_is_drawn(workdir, tmp_path, quick):
    asked = Request(config_of(), tmp_path, train="ld3")
    with pytest.raises(
        ValueError, match=r"--train ld3 takes about .* at the least here, .* --minutes=0.5; raise that to"
    ):
        compare.run(asked._replace(minutes=0.5))
    guided = config_of()
    guided.guidance.kind = "inpainting"
    with pytest.raises(
        ValueError, match=r"--train ld3 learns no schedule for this model: .*LD3 learns without guidance"
    ):
        create_learning(run_lib.load(guided), 6e3, 1e-4, 8.0)
    student = run_lib.load(config_of())
    student.config.student.method = "consistency"
    with pytest.raises(ValueError, match=r"is a student \(consistency\), .* Name that one with --checkpoint"):
        create_learning(student, 6e3, 1e-4, 8.0)
    with pytest.raises(ValueError, match="begun without --train=ld3; use another --workdir"):
        compare.run(Request(config_of(), workdir, train="ld3"))


@pytest.mark.parametrize(("minutes", "pairs", "updates"), [(600, 48, 8), (3.1, 32, 6), (2.1, 16, 6), (1.7, 8, 4)])
def test_what_is_learned_follows_from_the_time(minutes, pairs, updates, quick):
    found = create_learning(run_lib.load(config_of()), 60 * minutes, 0.005, 8.0)
    assert (found.changes["ld3.num_train"], found.changes["training.num_steps"]) == (pairs, updates)
    assert found.seconds <= 30 * minutes
    if pairs == 48:  # teacher, eight updates (each number once more, and what came of it), three looks
        images = 64 * 79 + 8 * 5 * (16 * (1 + 8 + 1) + 16) + 3 * 5 * 16
        images += 60 * 48 + 4 * 5 * 48  # the searched grid, and the four to begin from
        assert found.seconds == pytest.approx(0.005 * images + 4 * 8.0) and found.calls == 5


def test_the_time_of_a_killed_session_counts_to_its_last_file(tmp_path):
    with stopwatch(tmp_path) as before:
        assert before == 0
    started = json.loads((tmp_path / "seconds.json").read_text())["started"]
    (tmp_path / "seconds.json").write_text(json.dumps({"seconds": 10.0, "started": started - 100.0, "done": False}))
    os.utime(tmp_path / "seconds.json", (started - 100.0, started - 100.0))
    (tmp_path / "state").write_text("")
    os.utime(tmp_path / "state", (started - 60.0, started - 60.0))
    with stopwatch(tmp_path) as before:
        assert before == pytest.approx(50.0)
    with stopwatch(tmp_path) as before:
        assert 50.0 <= before < 60.0
