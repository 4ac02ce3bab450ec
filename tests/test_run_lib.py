"""One config, one weight file, one folder of images: what the modes promise, on a published network of 16 pixels."""

import copy
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_files import golden_folder
from ml_collections import ConfigDict
from PIL import Image as Pillow

import run_lib
from builders.config import apply_overrides
from builders.model import find_checkpoint
from configs import base as base_config
from masks.files import read_mask
from modes.request import parse_seeds
from modes.sample import plan
from reports.images import read_png
from reports.progress import Progress
from run_lib import Request

GOLDENS = golden_folder("pds")
WEIGHTS = GOLDENS / "ve_cifar10_ncsnpp_continuous_tiny.pth"
PUBLISHED = json.loads(WEIGHTS.with_suffix(".json").read_text())["config"]

FEW_LEVELS = {"sampling.speed_up": 250.0, "sampling.microbatch": 2}  # 4 levels; groups of 2 images a device


def write_config(path: Path, **model_edits) -> Path:
    """A config file as users of score_sde have it."""
    content = PUBLISHED | {"model": PUBLISHED["model"] | model_edits}
    path.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    config = ml_collections.ConfigDict({content!r})\n"
        "    training = config.training\n    training.sde = 'vesde'\n    return config\n"
    )
    return path


def published_masks(folder: Path) -> dict[str, str]:
    images = np.random.default_rng(0).uniform(size=(4, 3, 16, 16)).cumsum(2).cumsum(3) / 256
    np.save(folder / "f.npy", np.log1p((np.abs(np.fft.fft2(images)) ** 2).mean(0)).astype(np.float32))
    np.save(folder / "s.npy", (images**2).mean(0).astype(np.float32))
    return {"sampling.freq_mask_path": str(folder / "f.npy"), "sampling.space_mask_path": str(folder / "s.npy")}


def images_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("image_*.png")}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def config_file(home) -> Path:
    return write_config(home / "theirs.py")


@pytest.fixture(scope="module")
def overrides(home) -> dict:
    return FEW_LEVELS | published_masks(home)


@pytest.fixture(scope="module")
def model(config_file) -> run_lib.Model:
    return run_lib.load(config_file, WEIGHTS)


@pytest.fixture
def draw(config_file, overrides):
    """`draw(workdir, **flags)`: run_sample with the settings of this file."""

    def draw(workdir: Path, seeds: str = "", more: dict | None = None, dry_run: bool = False) -> dict[str, bytes]:
        config = run_lib.resolve_config(config_file)
        request = Request(config, workdir, str(WEIGHTS), "", seeds, overrides | (more or {}), dry_run)
        run_lib.MODES["sample"](request)
        return images_of(workdir / "eval")

    return draw


@pytest.fixture(scope="module")
def reference(home, config_file, overrides) -> Path:
    """A run of seven images: two groups on two devices, the last padded."""
    config = run_lib.resolve_config(config_file)
    run_lib.MODES["sample"](Request(config, home / "reference", str(WEIGHTS), "", "0-6", overrides))
    return home / "reference" / "eval"


# --- Which file, which config ---


def test_the_flag_wins_over_the_config_and_the_config_over_the_workdir(tmp_path):
    config = base_config.get_config()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("checkpoint.pth", "other.pth"):
        (folder / name).touch()
    (tmp_path / "flag.pth").touch()
    (tmp_path / "config.pth").touch()
    assert find_checkpoint(config, tmp_path) == folder / "checkpoint.pth"
    config.checkpoint = str(tmp_path / "config.pth")
    assert find_checkpoint(config, tmp_path) == tmp_path / "config.pth"
    assert find_checkpoint(config, tmp_path, str(tmp_path / "flag.pth")) == tmp_path / "flag.pth"


def test_the_only_file_in_the_folder_is_taken_and_several_are_listed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "a.pth").touch()
    (folder / ".hidden").touch()
    config = base_config.get_config()
    assert find_checkpoint(config, tmp_path) == folder / "a.pth"
    (folder / "b.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"several files \(a.pth, b.pth\).*--checkpoint"):
        find_checkpoint(config, tmp_path)


def test_a_missing_weight_file_is_named_with_where_it_was_asked_for(tmp_path):
    config = base_config.get_config()
    with pytest.raises(FileNotFoundError, match=r"give --checkpoint FILE.*checkpoints/checkpoint.pth"):
        find_checkpoint(config, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"--checkpoint names .*gone.pth, which does not exist"):
        find_checkpoint(config, tmp_path, str(tmp_path / "gone.pth"))
    config.checkpoint = str(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match=r"config.checkpoint names .*gone.pth"):
        find_checkpoint(config, tmp_path)


def test_a_config_of_either_layout_or_its_path_resolves_to_the_same(config_file):
    ours = run_lib.resolve_config(config_file)
    assert ours.sde.name == "vesde" and ours.data.image_size == 16 and ours.model.nf == 8
    assert run_lib.resolve_config(ours).to_dict() == ours.to_dict()
    theirs = ConfigDict(PUBLISHED)
    assert run_lib.resolve_config(theirs).to_dict() == ours.to_dict()


def test_a_config_of_an_older_version_gets_the_newer_keys():
    old = base_config.get_config()
    del old.sampling.chunk
    assert run_lib.resolve_config(old).sampling.chunk == base_config.get_config().sampling.chunk


def test_a_file_without_its_architecture_asks_for_a_config():
    with pytest.raises(ValueError, match=r"does not carry its architecture.*--config"):
        run_lib.load(None, WEIGHTS)


def test_a_config_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file .*gone.py"):
        run_lib.resolve_config(tmp_path / "gone.py")


def test_a_converted_file_loads_without_a_config_and_holds_the_same_bits(tmp_path, model, config_file):
    output = tmp_path / "model.safetensors"
    run_lib.MODES["convert"](Request(run_lib.resolve_config(config_file), None, str(WEIGHTS), str(output)))
    again = run_lib.load(None, output)
    assert again.config.to_dict() == model.config.to_dict()
    jax.tree.map(np.testing.assert_array_equal, again.denoiser.params, model.denoiser.params)


def test_conversion_needs_an_output(config_file):
    with pytest.raises(ValueError, match="--output is missing"):
        run_lib.MODES["convert"](Request(run_lib.resolve_config(config_file), None, str(WEIGHTS)))


def test_raw_weights_differ_from_the_averaged_ones(model, config_file):
    raw = run_lib.load(config_file, WEIGHTS, ema=False)
    pairs = zip(jax.tree.leaves(raw.denoiser.params), jax.tree.leaves(model.denoiser.params), strict=True)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in pairs)


def test_inspection_says_whether_the_network_fits_and_names_the_tensors(tmp_path, config_file, capsys):
    run_lib.MODES["inspect"](Request(run_lib.resolve_config(config_file), None, str(WEIGHTS)))
    assert "The network of the config fits." in capsys.readouterr().out
    wrong = run_lib.resolve_config(write_config(tmp_path / "wide.py", nf=16))
    run_lib.MODES["inspect"](Request(wrong, None, str(WEIGHTS)))
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "of another shape" in printed
    assert "AttnBlockpp_0/NIN_3/W (16, 16) instead of (32, 32)" in printed
    with pytest.raises(ValueError, match=r"does not fit the network of the config(.|\n)*NIN_3/W \(16, 16\)"):
        run_lib.load(wrong, WEIGHTS)


# --- What is to be drawn ---


def test_seeds_are_ranges_and_numbers_in_the_order_asked():
    assert parse_seeds("", 3) == [0, 1, 2]
    assert parse_seeds("0-3,9", 1) == [0, 1, 2, 3, 9]
    assert parse_seeds("7, 3", 1) == [7, 3]


@pytest.mark.parametrize("text", ["x", "3-1", "-1", "1-", "1,,2"])
def test_seeds_that_are_no_range_are_refused(text):
    with pytest.raises(ValueError, match=r"--seeds=.*neither a number nor a range"):
        parse_seeds(text, 1)


def test_an_image_named_twice_is_refused():
    with pytest.raises(ValueError, match="names an image twice"):
        parse_seeds("0-3,2", 1)


def test_the_plan_names_network_masks_levels_calls_and_images(model, overrides):
    config = copy.deepcopy(model.config)
    apply_overrides(config, overrides)
    planned = run_lib.Model(model.denoiser, config)
    sampler = run_lib.create_sampler(planned, config)
    line = plan(planned, sampler, 7)
    for part in ("ncsnpp", "16 px", "pds (pds_mode marginal, masks freq+space, alpha 5", " 4 levels", "7 images"):
        assert part in line
    assert f"{sampler.nfe} network calls an image" in line


def test_a_dry_run_writes_nothing(draw, tmp_path):
    assert draw(tmp_path, dry_run=True) == {} and not list(tmp_path.iterdir())


# --- Images ---


def test_a_run_leaves_its_images_their_pack_a_grid_and_a_record(reference, model):
    names = {path.name for path in reference.iterdir()}
    assert names == {f"image_{i}.png" for i in range(7)} | {"samples_0.npz", "grid.png", "run.json"}
    record = json.loads((reference / "run.json").read_text())
    assert record["images"] == 7 and record["sessions"][-1]["finished"]
    assert record["sessions"][-1]["calls"] == 8  # 4 levels of one predictor and one corrector call
    assert record["settings"]["weights"] == model.weights_hash
    with np.load(reference / "samples_0.npz") as packed:
        assert packed["arr_0"].shape == (7, 16, 16, 3)
        np.testing.assert_array_equal(packed["arr_0"][6], read_png(reference / "image_6.png").image)


def test_images_of_different_indices_differ(reference):
    assert len({read_png(path).image.tobytes() for path in reference.glob("image_*.png")}) == 7


def test_an_image_does_not_depend_on_how_many_are_asked_for(draw, reference, tmp_path):
    images = images_of(reference)
    assert draw(tmp_path / "three", "0-2") == {name: images[name] for name in [f"image_{i}.png" for i in range(3)]}
    assert draw(tmp_path / "two", "5-6") == {name: images[name] for name in ("image_5.png", "image_6.png")}


def test_a_resumed_run_draws_the_missing_and_the_damaged_images_again(draw, reference, tmp_path):
    expected = images_of(reference)
    draw(tmp_path, "0-6")
    folder = tmp_path / "eval"
    (folder / "image_1.png").unlink()
    (folder / "image_5.png").write_bytes(expected["image_5.png"][:100])
    kept = (folder / "image_0.png").stat().st_mtime_ns
    assert draw(tmp_path, "0-6") == expected
    assert (folder / "image_0.png").stat().st_mtime_ns == kept
    record = json.loads((folder / "run.json").read_text())
    assert [session["images_written"] for session in record["sessions"]] == [7, 2]


def test_a_run_that_dies_in_the_middle_is_finished_with_the_same_bits(draw, reference, tmp_path, monkeypatch):
    calls = []

    def dies(self, count=1):
        calls.append(count)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            draw(tmp_path, "0-6")
    assert set(images_of(tmp_path / "eval")) == {f"image_{i}.png" for i in range(4)}
    assert not (tmp_path / "eval" / "grid.png").exists()
    assert draw(tmp_path, "0-6") == images_of(reference)


def test_the_python_face_draws_the_images_of_the_files(reference, model, overrides):
    sampling = {key.removeprefix("sampling."): value for key, value in overrides.items()}
    drawn = run_lib.sample(model, sampling, range(7))
    assert drawn.nfe == 8
    files = np.stack([read_png(reference / f"image_{i}.png").image for i in range(7)])
    np.testing.assert_array_equal(run_lib.to_pixels(model, drawn.images), files)


def test_other_settings_in_the_same_folder_are_refused(draw, reference):
    with pytest.raises(ValueError, match=r"other settings: config.sampling.alpha is 5.0 there and 7.0 here"):
        draw(reference.parent, "0-6", {"sampling.alpha": 7.0})
    with pytest.raises(ValueError, match=r"other settings: seed is 42 there and 1 here"):
        draw(reference.parent, "0-6", {"seed": 1})


# --- Mistakes ---


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sampling.alpha", "0.5", r"alpha.*0\.5"),
        ("sampling.alpha", "five", r"--alpha='five' is neither a number nor 'auto'"),
        ("sampling.method", "ddim++", r"--method='ddim\+\+' is unknown; choose one of"),
        ("sampling.predictor", "heun", r"config.sampling.predictor='heun' is unknown"),
        ("sampling.speed_up", 900.0, r"1 noise levels.*Lower --speed_up"),
        ("sampling.speed_up", 0.0, r"--speed_up=0 must be positive"),
        ("sampling.microbatch", -1, r"config.sampling.microbatch=-1 must be at least 0"),
        ("eval.num_samples", 0, r"--num_samples=0 must be at least 1"),
        ("sampling.freq_mask_path", "gone.npy", r"--freq_mask_path=gone.npy: no such file"),
    ],
)
def test_a_setting_without_a_meaning_is_refused_by_name(draw, tmp_path, key, value, message):
    with pytest.raises(ValueError if "gone" not in str(value) else FileNotFoundError, match=message):
        draw(tmp_path, more={key: value})
    assert not list(tmp_path.rglob("*.png"))


def test_masks_of_another_shape_or_without_numbers_are_refused(draw, tmp_path):
    np.save(tmp_path / "wrong.npy", np.ones((3, 16, 12), np.float32))
    np.save(tmp_path / "nan.npy", np.full((3, 16, 16), np.nan, np.float32))
    for kind in ("freq", "space"):
        with pytest.raises(ValueError, match=rf"--{kind}_mask_path=.*wrong.npy.*16, 12"):
            draw(tmp_path, more={f"sampling.{kind}_mask_path": str(tmp_path / "wrong.npy")})
        with pytest.raises(ValueError, match=rf"--{kind}_mask_path=.*nan.npy.*(NaN|nan|finite)"):
            draw(tmp_path, more={f"sampling.{kind}_mask_path": str(tmp_path / "nan.npy")})


def test_drawing_needs_a_workdir(draw):
    with pytest.raises(ValueError, match="--workdir is missing"):
        draw(None)


# --- Modes that read images ---


@pytest.fixture(scope="module")
def pictures(home) -> Path:
    folder = home / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3), np.uint8)):
        Pillow.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def small_config(pictures: Path):
    config = base_config.get_config()
    config.data.update(source=str(pictures), image_size=16)
    config.model.update(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    config.training.update(batch_size=4, num_steps=2)
    config.sampling.microbatch = 8
    return config


def test_estimated_masks_are_the_published_formulas_and_can_be_read(tmp_path, pictures):
    run_lib.MODES["masks"](Request(small_config(pictures), tmp_path))
    x = np.stack([np.asarray(Pillow.open(path)) for path in sorted(pictures.iterdir())]) / 255
    power = (np.abs(np.fft.fft2(x, axes=(1, 2))) ** 2).mean(0)
    freq = read_mask(str(tmp_path / "masks" / "freq.npy"), "freq", (16, 16, 3))
    space = read_mask(str(tmp_path / "masks" / "space.npy"), "space", (16, 16, 3))
    np.testing.assert_allclose(freq, np.log1p(power), rtol=1e-5)
    np.testing.assert_allclose(space, (x**2).mean(0), rtol=1e-5)


def test_masks_and_training_ask_for_images(tmp_path):
    for mode in ("masks", "prepare", "train"):
        with pytest.raises(ValueError, match="config.data.source is empty"):
            run_lib.MODES[mode](Request(base_config.get_config(), tmp_path))


@pytest.mark.slow
def test_training_leaves_weights_that_load_without_a_config(tmp_path, pictures):
    run_lib.MODES["train"](Request(small_config(pictures), tmp_path))
    trained = run_lib.load(None, workdir=tmp_path, checkpoint=tmp_path / "checkpoints" / "model.safetensors")
    assert trained.shape == (16, 16, 3) and trained.config.model.nf == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.denoiser.params))
    assert (tmp_path / "samples" / "step_2.png").exists()
