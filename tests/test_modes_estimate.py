"""The line before a run: figures that follow the work, and an offer only where it is cheaper."""

import re

import run_lib
from builders.samplers import create_sampler
from configs.ve import analytic
from modes.estimate import estimate


def line(count=4, **sampling):
    config = analytic.get_config()
    config.data.image_size = 32
    config.sampling.update(sampling)
    model = run_lib.load(config)
    return estimate(model, create_sampler(model, config), count)


def test_it_states_memory_and_time_and_offers_a_cheaper_setting():
    assert re.fullmatch(
        r"about \d+ MB a device and [\d.]+ s, compilation apart; cheaper: --method=unipc --steps=10, about [\d.]+ s",
        line(speed_up=20.0),
    )


def test_a_run_of_few_calls_gets_no_offer():
    assert "cheaper" not in line(method="unipc", num_steps=20)
    assert "cheaper" in line(method="unipc", num_steps=21)


def test_the_time_of_a_solver_that_chooses_its_steps_is_not_guessed():
    config = analytic.get_config()
    config.data.image_size = 8
    model = run_lib.load(config)
    sampler = create_sampler(model, config)._replace(nfe=0)
    assert re.fullmatch(r"about \d+ MB a device", estimate(model, sampler, 4))


def test_time_grows_with_calls_and_images(monkeypatch):
    monkeypatch.setattr("modes.estimate.matmul_speed", lambda: 1e6)
    monkeypatch.setattr("modes.estimate.format_seconds", lambda seconds: f"{seconds} s")

    def seconds(**settings):
        return float(re.search(r"and ([\d.e+-]+) s,", line(**settings))[1])

    once = seconds(method="ddim", num_steps=5)
    assert seconds(method="ddim", num_steps=10) == 2 * once
    assert seconds(method="ddim", num_steps=5, count=8) == 2 * once
    assert seconds(method="ddim", num_steps=5, microbatch=4) < 1.1 * once  # the same images in one call
