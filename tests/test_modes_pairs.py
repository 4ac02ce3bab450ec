"""--mode=pairs: what a teacher makes of noise, kept so that the two belong together whenever they are read."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
from builders import pairs as builder
from configs import base as base_config
from configs import own
from data import store
from models.denoiser import Denoiser
from modes.request import Request
from reports.images import read_png, write_png
from run_lib import Model
from sde_lib import VESDE

STEPS = {"method": "heun", "num_steps": 6, "microbatch": 4, "chunk": 3}
FACTORY = """
import run_lib, sde_lib

def denoise(params, x, s):
    return 0.5 + (x - 0.5) * 0.04 / (0.04 + s[:, None, None, None] ** 2)

def make():
    return run_lib.Model.from_function(denoise, None, sde_lib.VESDE(), "x0", "sigma", (0, 1), (4, 4, 3))
"""


def denoise(params, x, s, classes=None):
    """E[x0 | y] of data N(0.5, 0.04), the mean of a class 0.1 higher than that of the class before."""
    mean = 0.5 if classes is None else 0.5 + 0.1 * classes[:, None, None, None]
    return mean + params * (x - mean) * 0.04 / (0.04 + s[:, None, None, None] ** 2)


def diverging(params, x, s):
    """Not finite for about half of all noise."""
    lost = (s > 40) & (x.mean(axis=(1, 2, 3)) > 0)
    return jnp.where(lost, jnp.nan, 1.0)[:, None, None, None] * denoise(params, x, s)


def hopeless(params, x, s):
    return jnp.nan * x


def model_of(fn=denoise, num_classes=0, own=(), guidance=(), weights="aa", **sampling) -> Model:
    config = base_config.get_config()
    config.data.update(image_size=4, num_classes=num_classes)
    config.sampling.update(STEPS | sampling)
    config.guidance.update(dict(guidance))
    config.pairs.update({"shard_size": 6} | dict(own))
    return Model(Denoiser(jnp.float32(1.0), fn, VESDE(), "x0", "sigma"), config, weights)


def fill(folder, model, count=10, most=None) -> store.Store:
    """The store of `count` records in `folder`, or the first `most` shards of it."""
    teacher = builder.create_teacher(model, model.config)
    found = store.create(folder, builder.specification(teacher, count))
    for number, _ in enumerate(builder.draw(teacher, found, found.pending()), 1):
        if number == most:
            break
    return store.open_store(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_run_killed_between_shards_ends_with_the_same_bytes(tmp_path):
    fill(tmp_path / "whole", model_of())
    assert fill(tmp_path / "killed", model_of(), most=1).pending() == [range(6, 10)]
    fill(tmp_path / "killed", model_of())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_noise_drawn_again_belongs_to_the_image_that_is_stored(tmp_path):
    model = model_of(num_classes=3, labels="2,0", own={"dtype": "float32"})
    found = fill(tmp_path, model)
    records = found.read(range(10))
    assert records.label.tolist() == [2, 0] * 5
    np.testing.assert_array_equal(records.images, run_lib.sample(model, {}, range(10)).images)
    # On Gaussian data the solver multiplies how far noise is from the mean by one number, near the data's deviation.
    noise, mean = np.asarray(found.noise(range(10))), 0.5 + 0.1 * records.label[:, None, None, None]
    gains = (records.images - mean) / (noise - mean / 50)
    np.testing.assert_allclose(gains, np.median(gains), rtol=1e-2)
    assert 0.05 < np.median(gains) < 0.4


@pytest.mark.parametrize("target", ["x0", "state"])
def test_a_trajectory_holds_the_points_at_the_times_it_says(tmp_path, target):
    times = (0.75, 0.5, 0.25, 0.0)
    model = model_of(own={"label_times": times, "target": target, "dtype": "float32"}, method="ddim", num_steps=12)
    model.config.sampling.grid = "time_uniform"
    found = fill(tmp_path, model, 4)
    spec, drawn = found.spec, run_lib.sample(model, {}, range(4), record=True)
    np.testing.assert_allclose(spec.label_times, times, atol=0.05)
    frames, s = found.read(range(4)).frames, np.asarray(VESDE().noise_scale(np.array(spec.label_times[:-1])))
    np.testing.assert_array_equal(frames[:, -1], drawn.images)
    for m, scale in enumerate(s):
        near = np.abs(np.log(_grid(model)[1:-1] / scale)).argmin()
        assert _grid(model)[near + 1] == pytest.approx(scale, rel=1e-6)
        path = drawn.trajectory if target == "state" else drawn.denoised
        np.testing.assert_array_equal(frames[:, m], path[near])
    if target == "x0":  # an estimate is made where its step begins
        begins = np.asarray(VESDE().noise_scale(np.array(spec.eval_times)))
        np.testing.assert_allclose(np.log(begins), -np.array(spec.lam))
        assert all(a > b for a, b in zip(spec.eval_times, spec.label_times, strict=True))


def _grid(model):
    return builder.create_grid(model, model.config, model.denoiser).s


def test_records_at_which_the_teacher_diverges_are_left_out_and_counted(tmp_path):
    found = fill(tmp_path, model_of(diverging), 24)
    lost = np.asarray(found.noise(range(24))).mean(axis=(1, 2, 3)) > 0
    assert 0 < lost.sum() < 24 and found.left_out() == np.flatnonzero(lost).tolist()
    np.testing.assert_allclose(
        found.read(found.usable()).images, run_lib.sample(model_of(), {}, found.usable().tolist()).images, atol=1e-3
    )
    with pytest.raises(ValueError, match=r"All images 0 to 5 .*heun.* are not finite"):
        fill(tmp_path / "hopeless", model_of(hopeless))


def test_a_folder_of_another_teacher_is_refused_and_both_are_named(tmp_path):
    fill(tmp_path, model_of(), most=1)
    for change, message in (
        ({"method": "ddim"}, "sampler.method is heun, asked for ddim"),
        ({"num_steps": 7}, "sampler.num_steps is 6, asked for 7"),
        ({"weights": "bb"}, "teacher.sha256 is aa, asked for bb"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(tmp_path, model_of(**change))


def test_the_specification_says_how_images_were_guided(tmp_path):
    write_png(tmp_path / "grey.png", np.full((4, 4, 3), 90, np.uint8))
    guidance = {"kind": "colorization", "image": str(tmp_path / "grey.png"), "scale": 2.0, "likelihood": "direct"}
    model = model_of(guidance=guidance | {"conditional": "flow"}, method="stsp2")
    said = builder.specification(builder.create_teacher(model, model.config), 4).to_json()["guidance"]
    assert (said["guidance"]["kind"], said["guidance"]["scale"]) == ("colorization", 2.0)
    assert list(said["conditions"]) == [str(tmp_path / "grey.png")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own": {"label_times": (0.5, 0.25)}}, "must decrease from below 1 to 0"),
        ({"own": {"label_times": (0.25, 0.5, 0.0)}}, "must decrease"),
        ({"own": {"label_times": (0.02, 0.01, 0.0)}}, "6 steps do not pass that many points there, only the times"),
        ({"own": {"label_times": (0.5, 0.0)}, "method": "pc"}, "--method=pc has no path along a grid"),
        ({"latents": "l.npz"}, "config.sampling.latents=l.npz: pairs begin from noise"),
    ],
)
def test_what_cannot_be_stored_is_refused(change, message):
    model = model_of(**change)
    with pytest.raises(ValueError, match=message):
        builder.create_teacher(model, model.config)


def test_the_command_fills_the_folder_and_again_changes_nothing(tmp_path, caplog):
    (tmp_path / "mine.py").write_text(FACTORY)
    config = own.get_config()
    config.model.factory = f"{tmp_path / 'mine.py'}:make"
    config.pairs.update(png=True, shard_size=4)
    overrides = {f"sampling.{key}": value for key, value in STEPS.items()} | {"eval.num_samples": 6}
    request = Request(config, tmp_path / "W", overrides=overrides)
    with caplog.at_level(logging.INFO, logger="absl"):
        run_lib.MODES["pairs"](request._replace(dry_run=True))
        assert "11 network calls each, 66 in all" in caplog.text and "in 2 shards" in caplog.text
        assert not (tmp_path / "W").exists()
        run_lib.MODES["pairs"](request)
        first = contents(tmp_path / "W" / "pairs")
        run_lib.MODES["pairs"](request)
    assert contents(tmp_path / "W" / "pairs") == first and "All 6 records were there already" in caplog.text
    found = store.open_store(tmp_path / "W" / "pairs")
    assert (len(found), found.spec.sampler["calls"], found.spec.sampler["method"]) == (6, 11, "heun")
    copies = sorted((tmp_path / "W" / "pairs_png").iterdir())
    pixels = np.round(255 * np.clip(found.read([5]).images[0], 0, 1))
    assert len(copies) == 6 and np.abs(read_png(copies[-1]).image - pixels).max() <= 1
    with pytest.raises(ValueError, match="--seeds=0-3: a store holds records 0 to n - 1"):
        run_lib.MODES["pairs"](request._replace(seeds="0-3"))
