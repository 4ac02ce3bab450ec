"""--mode=train for learned schedules: from a model to a file that samples; killed runs; what is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
from builders import ld3 as builder
from builders import schedules
from configs import base, methods
from data import store
from modes import train
from modes.request import Request
from sampling import learned, multistep
from training import ld3, ld3_learning

SIZE = 4


def config_of(method="ld3", steps=3, **own):
    """An analytic model of 4 px, so that no network is compiled."""
    config = methods.apply(base.get_config(), method)
    config.data.image_size, config.seed = SIZE, 0
    config.model.update(name="analytic", components=1)
    config.sampling.num_steps = steps
    config.training.num_steps = 6
    config.ld3.update(num_train=4, num_valid=2, microbatch=2, teacher_steps=8, valid_every=3, solver="dpmpp", order=2)
    config.ld3.start = "edm"
    config.ld3.update(own)
    return config


def run(config, workdir):
    train.run(Request(config, workdir))
    return workdir


@pytest.fixture(scope="module")
def learned_folder(tmp_path_factory):
    return run(config_of(), tmp_path_factory.mktemp("ld3"))


def sampled(path, method="ld3", **changes):
    config = config_of(method)
    config.sampling.update({"schedule": str(path)} | changes)
    return run_lib.sample(run_lib.load(config), None, range(2))


def test_a_run_leaves_a_schedule_its_pictures_and_its_pairs(learned_folder):
    files = {path.name for path in (learned_folder / "ld3").iterdir()}
    assert files >= {"ld3_3.json", "ld3_3_loss.png", "ld3_3_grid.png", "ld3_3_before_after.png"}
    found = learned.read(str(learned_folder / "ld3" / "ld3_3.json"))
    assert (found.solver, found.order, found.grid.num_steps, found.guidance) == ("dpmpp", 2, 3, {"kind": "none"})
    assert found.teacher["method"] == "heun" and found.training["valid_loss"] > 0
    pairs = store.open_store(learned_folder / "pairs")
    assert len(pairs) == 6 and pairs.spec.seed != 0 and pairs.spec.dtype == "float32"


@pytest.mark.parametrize("method", ["ld3", "s4s", "gs"])
def test_what_was_learned_is_what_is_sampled(method, tmp_path):
    """From the noise of the validation pairs, the sampler of the file ends where the student ended."""
    config = config_of(method)
    run(config, tmp_path)
    model = run_lib.load(config)
    pairs, _ = builder.create_pairs(model, config, tmp_path / "pairs")
    path = tmp_path / "ld3" / f"{method}_3.json"
    assert learned.read(str(path)).method == method
    of_pairs = dataclasses.replace(model, config=config_of(method))
    of_pairs.config.seed = store.open_store(tmp_path / "pairs").spec.seed
    of_pairs.config.sampling.schedule = str(path)
    drawn = run_lib.sample(of_pairs, None, [4, 5])
    assert drawn.nfe == 3
    each = np.mean((drawn.images - pairs.valid_targets) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(each.mean(), learned.read(str(path)).training["valid_loss"], rtol=1e-3)


def test_a_run_that_was_stopped_goes_on_to_the_same_file(learned_folder, tmp_path):
    config = config_of()
    config.training.num_steps = 3
    config.optim.schedule = "constant"
    run(config, tmp_path)
    config.training.num_steps = 6
    run(config, tmp_path)
    whole = config_of()
    whole.optim.schedule = "constant"
    run(whole, tmp_path / "whole")
    texts = [(folder / "ld3" / "ld3_3.json").read_text() for folder in (tmp_path, tmp_path / "whole")]
    assert texts[0] == texts[1]
    with pytest.raises(ValueError, match="begun with other settings"):
        run(config_of(loss="l1"), tmp_path)


def test_pairs_come_from_a_store_of_the_same_weights(learned_folder, tmp_path):
    config = config_of(pairs=str(learned_folder / "pairs"), num_valid=1)
    run(config, tmp_path)
    assert not (tmp_path / "pairs").exists()
    with pytest.raises(ValueError, match=r"holds 6 pairs, config.ld3 asks for 64 to learn from and 2"):
        run(config_of(pairs=str(learned_folder / "pairs"), num_train=64), tmp_path / "more")
    other = config_of(pairs=str(learned_folder / "pairs"))
    other.model.residual = 0.1
    with pytest.raises(ValueError, match="holds pairs of another model"):
        run(other, tmp_path / "other")


@pytest.mark.slow
def test_the_published_loop_writes_a_grid_that_samples(tmp_path):
    config = config_of(preset="paper", rounds=(1, 1), radius=1.0, solver="unipc", order=2, variant="bh1")
    run(config, tmp_path)
    found = learned.read(str(tmp_path / "ld3" / "ld3_3.json"))
    assert found.grid.s[-1] == pytest.approx(0.01, rel=1e-3) and found.training["preset"] == "paper"
    assert sampled(tmp_path / "ld3" / "ld3_3.json").nfe == 3
    before = (tmp_path / "ld3" / "ld3_3.json").read_text()
    run(config, tmp_path)
    assert (tmp_path / "ld3" / "ld3_3.json").read_text() == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"solver": "pds"}, "config.ld3.solver='pds' cannot be learned; choose one of"),
        ({"learn": "gan"}, "config.ld3.learn='gan' is unknown"),
        ({"loss": "vgg"}, r"config.ld3.loss='vgg' is unknown; choose one of \['huber', 'l1', 'l2', 'lpips'\]"),
        (
            {"loss": "lpips"},
            "config.loss.weights is empty, and a perceptual distance needs a network. Give torchvision's",
        ),
        ({"preset": "mine"}, "config.ld3.preset='mine' is unknown"),
        ({"optimizer": "sgd"}, "config.ld3.optimizer='sgd' is unknown"),
        ({"optimizer": "gauss_newton", "loss": "l1"}, "set config.ld3.loss=l2"),
        ({"steps": 1}, "fewer than 2 steps has nothing to learn"),
        ({"order": 3, "steps": 2}, "needs at least 3 steps"),
        ({"start": "edn"}, "'edn' is unknown"),
        ({"start": "14.0,2.0,0.0"}, "has 2 steps, --steps asks for 3"),
        ({"num_train": 3}, "3 pairs an update.*no multiple of config.ld3.microbatch=2"),
        ({"learn": "gs", "preset": "paper", "num_train": 4}, "the published loop learns grids only"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, message, tmp_path):
    changes = {"steps": 3} | changes
    with pytest.raises(ValueError, match=message):
        run(config_of(**changes), tmp_path)


def test_a_network_that_is_told_classes_or_guided_is_refused(tmp_path):
    config = config_of()
    config.guidance.kind = "classifier"
    with pytest.raises(ValueError, match="config.guidance.kind='classifier'.*LD3 learns without guidance"):
        run(config, tmp_path)


def test_a_schedule_is_refused_for_other_steps_processes_and_tasks(learned_folder):
    path = learned_folder / "ld3" / "ld3_3.json"
    np.testing.assert_array_equal(sampled(path).images, sampled(path, num_steps=0).images)
    with pytest.raises(ValueError, match="was learned for 3 steps, --steps asks for 4"):
        sampled(path, num_steps=4)
    with pytest.raises(ValueError, match="was learned for order 2, config.sampling.order asks for 3"):
        sampled(path, order=3)
    with pytest.raises(ValueError, match="takes neither guidance nor a start"):
        sampled(path, latents="latents.npz")
    config = config_of()
    config.sde.sigma_max, config.sampling.schedule = 40.0, str(path)
    with pytest.raises(ValueError, match="was learned under VESDE.*the model has VESDE.*sigma_max=40.0"):
        run_lib.sample(run_lib.load(config), None, range(2))


@pytest.fixture
def task_of(monkeypatch):
    """What is learned under a config; tables are not made, which tests of the solvers see to."""
    monkeypatch.setattr(ld3, "grid", lambda space, params: None)
    monkeypatch.setattr(multistep, "table", lambda solver, grid, **settings: None)
    return lambda config: builder.create_task(run_lib.load(config), config)


def test_every_key_of_ld3_reaches_what_is_learned(task_of):
    own = dict(loss="huber", radius=2.0, share=0.3, bound="own", spacing="time", to_zero=False, start="logsnr")
    config = config_of(**own)
    task = task_of(config)
    sde, space, objective = run_lib.load(config).sde, task.problem.space, task.problem.objective
    s_max, s_min = space.s_max, float(sde.noise_scale(np.float64(1e-5)))
    assert space == ld3.Space(sde, s_max, 0.5 * s_min, "time", False, 0.3, "own") and s_max == pytest.approx(50)
    assert task.problem.student == ld3.Student("dpmpp", 2, "", False) and task.name == "ld3_3"
    assert objective.distance is ld3.huber and objective.prior_scale == pytest.approx(s_max)
    assert objective.radius == pytest.approx(2 * 0.001 * SIZE * SIZE * 3 / 3**2)
    # A named grid has all its steps above the least noise scale: none is spent there from the start.
    begun = builder.first_grid(run_lib.load(config), config, "logsnr")
    np.testing.assert_allclose(begun, np.geomspace(s_max, s_min, 4), rtol=1e-6)
    config.ld3.update(bound="spacing", to_zero=True)
    other = task_of(config).problem.space
    assert (other.bound, other.to_zero) == ("spacing", True)


@pytest.mark.parametrize("nearest", builder.AUTO)
def test_the_grid_to_begin_from_is_the_one_that_made_the_targets(nearest):
    config = config_of(start="auto")
    config.sampling.gits_images = 2
    model = run_lib.load(config)
    noise = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    made = config_of(start=nearest)
    made.sampling.gits_images = 2
    there = builder.create_task(model, made)
    targets = np.asarray(ld3_learning.run(there.problem, there.params, jnp.asarray(noise)))
    # Those to be judged on are another grid's: they must not choose.
    other = builder.create_task(model, config_of(start="time_uniform"))
    unseen = np.asarray(ld3_learning.run(other.problem, other.params, jnp.asarray(noise)))
    pairs = ld3_learning.Pairs(noise, targets, noise, unseen)
    begun = builder.begin(model, config, builder.create_task(model, config), pairs)
    # At three steps the searched grid of this model may be one of the others, and is then as near.
    np.testing.assert_allclose(begun.params["logits"], there.params["logits"], rtol=1e-6)
    assert begun.start == nearest or {begun.start, nearest} == {"logsnr", "dmn"}
    asked = builder.create_task(model, made)
    assert builder.begin(model, made, asked, pairs) is asked


def test_a_grid_without_a_finite_loss_is_not_begun_from(monkeypatch):
    config = config_of(start="auto")
    monkeypatch.setattr(builder, "AUTO", ("edm", "logsnr"))
    monkeypatch.setattr(ld3_learning, "judge", lambda *_: losses.pop(0))
    losses = [np.array([np.nan, 1.0]), np.array([2.0, 3.0])]
    model, noise = run_lib.load(config), np.zeros((2, SIZE, SIZE, 3), np.float32)
    pairs = ld3_learning.Pairs(noise, noise, noise, noise)
    assert builder.begin(model, config, builder.create_task(model, config), pairs).start == "logsnr"


def test_the_published_preset_keeps_to_the_published_space(task_of):
    config = config_of(preset="paper", solver="unipc", to_zero=True, bound="own")
    task, sde = task_of(config), run_lib.load(config).sde
    s_min = float(sde.noise_scale(np.float64(1e-5)))
    assert task.problem.space == ld3.Space(sde, 50.0, s_min, config.ld3.spacing, False, 0.5, "released")
    assert task.problem.student.published_gradient and task.start == "even"
    assert not task.params["shifts"].any() and np.ptp(task.params["logits"]) == 0
    config.ld3.start = "auto"
    nothing = np.zeros((0, SIZE, SIZE, 3), np.float32)
    assert builder.begin(run_lib.load(config), config, task, ld3_learning.Pairs(*[nothing] * 4)) is task


def test_the_distance_that_is_told_is_the_root_mean_square_of_an_image_averaged(task_of, monkeypatch):
    task, noise = task_of(config_of(loss="l1")), np.zeros((2, SIZE, SIZE, 3), np.float32)
    asked = []

    def squares(problem, params, *pairs):
        asked.append(problem.objective)
        return np.array([0.04, 0.16])

    monkeypatch.setattr(ld3_learning, "judge", squares)
    told, _ = builder.distances(task, task.params, ld3_learning.Pairs(noise, noise, noise, noise), 2)
    assert told == pytest.approx(0.3) and asked[0].distance is ld3.l2 and asked[0].codec is None


def test_other_weights_are_warned_of(learned_folder, caplog):
    config = config_of()
    config.model.residual = 0.1
    config.sampling.schedule = str(learned_folder / "ld3" / "ld3_3.json")
    schedules.read_schedule(run_lib.load(config), config)
    assert "was learned with other weights" in caplog.text


def test_a_file_is_found_by_method_and_steps_or_what_there_is_is_listed(learned_folder):
    pattern = str(learned_folder / "ld3" / "{method}_{steps}.json")
    np.testing.assert_array_equal(sampled(pattern).images, sampled(learned_folder / "ld3" / "ld3_3.json").images)
    with pytest.raises(FileNotFoundError, match=r"--steps=7: there is no ld3_7.json in .*only \['ld3_3.json'\]"):
        sampled(pattern, num_steps=7)
    with pytest.raises(FileNotFoundError, match=r"with no --steps.*only \['ld3_3.json'\]"):
        sampled(pattern, num_steps=0)
    with pytest.raises(ValueError, match="name its file with --config.sampling.schedule=FILE"):
        sampled("")


def test_a_published_list_goes_with_the_solver_of_the_config(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([50.0, 4.0, 0.5, 0.0]))
    by_file = sampled(path)
    config = config_of("ddim")
    config.sampling.update(method="dpmpp", order=2, grid="50.0,4.0,0.5,0.0", num_steps=3)
    np.testing.assert_array_equal(by_file.images, run_lib.sample(run_lib.load(config), None, range(2)).images)
    path.write_text(json.dumps([14.6, 4.0, 0.5, 0.0]))
    with pytest.raises(ValueError, match="begins at noise scale 14.6, the model at 50"):
        sampled(path)


def test_a_grid_may_be_a_file_and_one_that_is_more_than_a_grid_is_sent_on(learned_folder, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"a": {"t_steps": [50.0, 4.0, 0.5, 0.0]}}))
    config = config_of("ddim")
    by_list, by_file = config.copy_and_resolve_references(), config
    by_list.sampling.grid, by_file.sampling.grid = "50.0,4.0,0.5,0.0", f"{path}#a"
    drawn = [run_lib.sample(run_lib.load(c), None, range(2)).images for c in (by_list, by_file)]
    np.testing.assert_array_equal(*drawn)
    config.sampling.update(grid=str(learned_folder / "ld3" / "ld3_3.json"), method="dpmpp")
    with pytest.raises(ValueError, match="is more than a grid.*--method=ld3"):
        run_lib.sample(run_lib.load(config), None, range(2))
    config.sampling.method = "unipc"
    with pytest.raises(ValueError, match="was learned for dpmpp, --method asks for unipc"):
        run_lib.sample(run_lib.load(config), None, range(2))


def test_a_schedule_that_the_method_does_not_read_is_refused(learned_folder):
    config = config_of("ddim")
    config.sampling.schedule = str(learned_folder / "ld3" / "ld3_3.json")
    with pytest.raises(ValueError, match="is not read by --method=ddim"):
        run_lib.sample(run_lib.load(config), None, range(2))
    config.sampling.schedule = "demo/{method}_{steps}.json"
    run_lib.sample(run_lib.load(config), None, range(2))


def test_a_dry_run_shows_the_plan_and_trains_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    train.run(Request(config_of(), tmp_path, dry_run=True))
    assert "ld3_3: dpmpp, 3 network calls an image, 6 updates of 4 images" in caplog.text
    assert not list(tmp_path.iterdir())
    config = config_of()
    config.training.method = "score_matching"
    with pytest.raises(ValueError, match="--dry_run shows no plan of config.training.method='score_matching'"):
        train.run(Request(config, tmp_path, dry_run=True))
