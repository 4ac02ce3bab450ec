"""Recommendations from rows: the cheapest that cannot be told from the best; and rows that do not belong together."""

import math

import pytest

from reports import choose


def row(method, calls, value, spread=0.0, **more):
    interval = {"block_frechet_low": value - spread, "block_frechet_high": value + spread} if spread else {}
    facts = {"checkpoint": "c", "n": 256, "seed": 0, "reference": "r", "machine": "m"}
    return {"method": method, "calls": calls, "block_frechet": value} | interval | facts | more


ROWS = [row("ddim", 5, 3.0), row("unipc", 5, 2.0), row("unipc", 10, 1.02, 0.05), row("heun", 19, 1.0, 0.05)]


def test_each_budget_gets_the_best_that_it_can_pay_for():
    found = {
        choice.budget: choice.row and choose.name(choice.row) for choice in choose.recommend(ROWS, "block_frechet")
    }
    assert found == {
        1: None,
        5: "unipc, 5 calls",
        10: "unipc, 10 calls",
        # Heun's 1.0 is the best and reaches to 1.05; 10 calls of UniPC at 1.02 cannot be told from it.
        **dict.fromkeys((20, 50, 100, math.inf), "unipc, 10 calls"),
    }


def test_without_an_interval_the_best_is_taken_however_near_a_cheaper_one_comes():
    rows = [row("unipc", 10, 1.001), row("heun", 19, 1.0)]
    assert choose.recommend(rows, "block_frechet", [20])[0].row["method"] == "heun"
    # Its interval reaches down to the best's, its value does not lie in it.
    wide = [row("unipc", 10, 1.2, 0.3), row("heun", 19, 1.0, 0.05)]
    assert choose.recommend(wide, "block_frechet", [20])[0].row["method"] == "heun"


def test_words_give_value_interval_rival_and_floor():
    rows = [row("unipc", 10, 1.02, 0.05, block_frechet_floor=0.98), row("heun", 19, 1.0, 0.05)]
    words = choose.recommend(rows, "block_frechet", [20])[0].words
    assert words == (
        "unipc, 10 calls: block Frechet distance 1.02 (0.97 to 1.07). heun, 19 calls scores 1 (0.95 to 1.05), which "
        "cannot be told from it. That is what as many perfect samples would score (0.98)."
    )
    assert "Nothing that was measured takes so few calls" in choose.recommend(rows, "block_frechet", [1])[0].words


def test_rows_are_judged_by_the_first_quality_that_they_have():
    assert choose.judged(ROWS) == ("block_frechet", ROWS)
    distances = [{"calls": 5, "distance": 0.1}, {"calls": 10, "distance": 0.05}, {"calls": 50, "distance": None}]
    assert choose.judged(distances) == ("distance", distances[:2])
    # One row alone makes no comparison, and a negative distance is none.
    assert choose.judged([*distances, row("pds", 50, 1.0), row("pc", 50, -1.0)]) == ("distance", distances[:2])
    with pytest.raises(ValueError, match="None of 1 rows has both calls and one of fid, block_frechet, distance"):
        choose.judged([{"calls": 3, "block_frechet": float("nan")}])


@pytest.mark.parametrize("key", ["checkpoint", "n", "seed", "reference", "machine"])
def test_rows_of_two_comparisons_are_told_apart(key):
    with pytest.raises(ValueError, match=f"W/results.jsonl mixes rows whose '{key}' differs"):
        choose.check_comparable([*ROWS, ROWS[0] | {key: "another"}], "W/results.jsonl")
    choose.check_comparable(ROWS, "W/results.jsonl")


def test_a_name_tells_calls_gradient_calls_and_the_mode_of_pds():
    assert choose.name(row("stsp2", 1, 1.0, gradient_calls=2)) == "stsp2, 1 call and 2 gradient calls"
    assert choose.name(row("pds", 50, 1.0, pds_mode="paper")) == "pds (paper), 50 calls"


def test_a_line_is_a_method_at_settings_that_set_more_than_its_cost():
    points = ("method=pc,snr=0.1,num_steps=5", "method=pc,snr=0.2,num_steps=5", "method=pc,snr=0.2,num_steps=9")
    rows = [row("pc", 5, 1.0, point=point) for point in points]
    rows += [row("ld3", 5, 1.0, point="method=ld3,num_steps=5"), row("ld3", 5, 1.0, point="num_steps=5,learned_here")]
    rows += [row("heun", 9, 1.0, point="method=heun,order=2,num_steps=5"), row("pds", 9, 1.0, pds_mode="paper")]
    assert [found["series"] for found in choose.with_series(rows)] == [
        *("pc (snr 0.1)", "pc (snr 0.2)", "pc (snr 0.2)"),
        *("ld3", "ld3 (learned here)", "heun", "pds (paper)"),
    ]
    assert choose.name(choose.with_series(rows)[1]) == "pc (snr 0.2), 5 calls"


def test_an_fid_is_judged_by_where_rows_have_one_and_says_of_how_many_images():
    rows = [row("pc", 5, 1.0) | {"fid@5000": 9.0}, row("pc", 9, 2.0) | {"fid@5000": 8.0}]
    assert choose.judged(rows) == ("fid@5000", rows)
    assert choose.quality_words("fid@5000")[0] == "FID@5000" and choose.quality_words("fid")[0] == "FID"
    assert choose.recommend(rows, "fid@5000", [20])[0].words == "pc, 9 calls: FID@5000 8."


def test_what_was_learned_says_how_long_that_took():
    words = choose.recommend([row("ld3", 5, 1.0, learning_seconds=75.0)], "block_frechet", [5])[0].words
    assert words.endswith("block Frechet distance 1. Its schedule was learned here in 1 min 15 s.")
