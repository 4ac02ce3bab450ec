"""How many images go into a call: what fits, what is stored with the run, and half of it where it did not fit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import run_lib
from builders import memory
from configs import own
from modes import sample
from modes.request import Request

FACTORY = """
import run_lib, sde_lib

def denoise(params, x, s):
    return 0.5 + (x - 0.5) * 0.04 / (0.04 + s[:, None, None, None] ** 2)

def make():
    return run_lib.Model.from_function(denoise, None, sde_lib.VESDE(), "x0", "sigma", (0, 1), (4, 4, 3))
"""


@pytest.mark.parametrize(("free", "count"), [(1000, 8), (899, 4), (900, 8), (1699, 8), (1700, 16), (50, 1)])
def test_the_largest_power_of_two_that_fits_is_taken(free, count):
    # 100 bytes whatever the number of images and 100 for each of them
    assert memory.fitting(free, few=300, more=500) == count


class Device:
    def __init__(self, limit):
        self.limit = limit

    def memory_stats(self):
        return {"bytes_limit": self.limit}


def request_of(tmp_path, **sampling) -> Request:
    (tmp_path / "mine.py").write_text(FACTORY)
    config = own.get_config()
    config.model.factory = f"{tmp_path / 'mine.py'}:make"
    settings = {"method": "ddim", "num_steps": 2, "microbatch": 0} | sampling
    overrides = {f"sampling.{key}": value for key, value in settings.items()}
    return Request(config, tmp_path / "W", overrides=overrides | {"eval.num_samples": 64, "eval.compare": ""})


def test_a_device_is_filled_to_its_share_and_no_further_than_the_run_needs(tmp_path, monkeypatch):
    model = run_lib.load(request_of(tmp_path).config)
    few, more = (memory.call_bytes(model, model.config, images) for images in (2, 4))
    each = (more - few) / 2
    assert each >= 4 * 4 * 3 * 4  # at least the result itself
    monkeypatch.setattr(jax, "local_devices", lambda: [Device((20 * each + few) / memory.SHARE)])
    assert memory.automatic_microbatch(model, model.config, 1000) == 16
    assert memory.automatic_microbatch(model, model.config, 9) == 8
    model.config.guidance.kind = "inpainting"
    assert memory.automatic_microbatch(model, model.config, 1000) < 16


def test_parameters_and_the_copies_of_an_operator_take_their_part(tmp_path, monkeypatch):
    model = run_lib.load(request_of(tmp_path).config)
    model = dataclasses.replace(model, denoiser=dataclasses.replace(model.denoiser, params=np.zeros(1000, np.float64)))
    monkeypatch.setattr(memory, "call_bytes", lambda model, config, count: 1000 * count)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device((8000 + 31_000) / memory.SHARE)])
    assert memory.automatic_microbatch(model, model.config, 1000) == 16  # 32 would fit if the parameters took nothing
    model.config.model.num_times = 4  # a student of DSNO sees four of an image
    assert memory.automatic_microbatch(model, model.config, 1000) == 4


def test_the_cpu_takes_a_few_images_or_each_device_its_share(tmp_path):
    model = run_lib.load(request_of(tmp_path).config)
    model.config.eval.batch_size = 64
    assert jax.local_device_count() == 2
    assert [memory.automatic_microbatch(model, model.config, count) for count in (1000, 10, 1)] == [8, 5, 1]


def run_short_of_memory(monkeypatch, most: int, request: Request) -> None:
    """Runs --mode=sample on devices that hold `most` images a call."""
    real = sample.sample_groups

    def guarded(model, sampler, config, *rest):
        if config.sampling.microbatch > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        return real(model, sampler, config, *rest)

    monkeypatch.setattr(sample, "sample_groups", guarded)
    sample.run(request)


def test_out_of_memory_halves_the_call_once_and_the_run_remembers_it(tmp_path, monkeypatch):
    run_short_of_memory(monkeypatch, 4, request_of(tmp_path))
    folder = tmp_path / "W" / "eval"
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["config"]["sampling"]["microbatch"] == 4 and record["images"] == 64
    (folder / "image_3.png").unlink()
    monkeypatch.setattr(sample, "automatic_microbatch", lambda *_: 16)  # more memory when it goes on
    sample.run(request_of(tmp_path))
    assert json.loads((folder / "run.json").read_text())["settings"] == record["settings"]


def test_what_does_not_fit_twice_or_was_asked_for_is_said(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="images a network call .config.sampling.microbatch. do not fit"):
        run_short_of_memory(monkeypatch, 2, request_of(tmp_path))
    with pytest.raises(
        OSError, match="16 images a network call .*RESOURCE_EXHAUSTED.* Set --config.sampling.microbatch=8"
    ):
        run_short_of_memory(monkeypatch, 2, request_of(tmp_path, microbatch=16)._replace(workdir=tmp_path / "V"))


def test_other_errors_of_the_device_are_not_taken_for_this_one(tmp_path, monkeypatch):
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(sample, "sample_groups", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        sample.run(request_of(tmp_path))
