"""Configs of other programs: translated key by key, and run from files that import what is not installed here."""

import json
import logging
import os
import sys
import textwrap
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import configs
from configs import check, score_sde, score_sde_defaults
from configs.ve import bedroom_ncsnpp_continuous, cifar10_ncsnpp_continuous, ffhq_ncsnpp_continuous
from configs.vp.ddpm import cifar10_continuous

GOLDENS = Path(__file__).parent / "goldens" / "pds"

# Files as score_sde and PDS users have them: the imports, the style and the nesting are theirs.
NCSNPP = """
    model = config.model
    model.name = 'ncsnpp'
    model.scale_by_sigma = True
    model.ema_rate = 0.999
    model.normalization = 'GroupNorm'
    model.nonlinearity = 'swish'
    model.nf = 128
    model.ch_mult = (1, 2, 2, 2)
    model.num_res_blocks = 4
    model.attn_resolutions = (16,)
    model.resamp_with_conv = True
    model.conditional = True
    model.fir = True
    model.fir_kernel = [1, 3, 3, 1]
    model.skip_rescale = True
    model.resblock_type = 'biggan'
    model.progressive = 'none'
    model.progressive_input = 'residual'
    model.progressive_combine = 'sum'
    model.attention_type = 'ddpm'
    model.init_scale = 0.
    model.fourier_scale = 16
    model.conv_size = 3
"""

PC = """
    sampling = config.sampling
    sampling.method = 'pc'
    sampling.predictor = 'reverse_diffusion'
    sampling.corrector = 'langevin'
"""

CIFAR10 = f"""
from configs.default_cifar10_configs import get_default_configs

def get_config():
    config = get_default_configs()
    training = config.training
    training.sde = 'vesde'
    training.continuous = True
{PC}{NCSNPP}
    return config
"""

DEEP = CIFAR10.replace("num_res_blocks = 4", "num_res_blocks = 8").replace(
    "    return config",
    "    training.n_iters = 950001\n    config.eval.batch_size = 960\n    return config",
)

BEDROOM = f"""
from configs.default_lsun_configs import get_default_configs

def get_config():
    config = get_default_configs()
    training = config.training
    training.sde = 'vesde'
    training.continuous = True
{PC}
    data = config.data
    data.category = 'bedroom'
{NCSNPP}
    model.sigma_max = 378
    model.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    model.num_res_blocks = 2
    model.progressive = 'output_skip'
    model.progressive_input = 'input_skip'
    config.eval.batch_size = 2
    config.eval.num_samples = 10
    return config
"""

CHURCH = BEDROOM.replace("378", "380").replace("bedroom", "church_outdoor")

DDPM = """
from configs.default_cifar10_configs import get_default_configs

def get_config():
    config = get_default_configs()
    training = config.training
    training.sde = 'vpsde'
    training.continuous = True
    training.reduce_mean = True
    sampling = config.sampling
    sampling.method = 'pc'
    sampling.predictor = 'euler_maruyama'
    sampling.corrector = 'none'
    data = config.data
    data.centered = True
    model = config.model
    model.name = 'ddpm'
    model.scale_by_sigma = False
    model.ema_rate = 0.9999
    model.normalization = 'GroupNorm'
    model.nonlinearity = 'swish'
    model.nf = 128
    model.ch_mult = (1, 2, 2, 2)
    model.num_res_blocks = 2
    model.attn_resolutions = (16,)
    model.resamp_with_conv = True
    model.conditional = True
    return config
"""

FFHQ = f"""
import ml_collections
import torch

def get_config():
    config = ml_collections.ConfigDict()
    config.training = training = ml_collections.ConfigDict()
    training.batch_size = 8
    training.n_iters = 2400001
    training.snapshot_freq = 50000
    training.log_freq = 50
    training.eval_freq = 100
    training.snapshot_freq_for_preemption = 5000
    training.snapshot_sampling = True
    training.sde = 'vesde'
    training.continuous = True
    training.likelihood_weighting = False
    training.reduce_mean = True
    config.sampling = sampling = ml_collections.ConfigDict()
    sampling.method = 'pc'
    sampling.predictor = 'reverse_diffusion'
    sampling.corrector = 'langevin'
    sampling.probability_flow = False
    sampling.snr = 0.15
    sampling.n_steps_each = 1
    sampling.noise_removal = True
    config.eval = evaluate = ml_collections.ConfigDict()
    evaluate.batch_size = 1
    evaluate.num_samples = 4
    evaluate.begin_ckpt = 1
    config.data = data = ml_collections.ConfigDict()
    data.dataset = 'FFHQ'
    data.image_size = 1024
    data.centered = False
    data.random_flip = True
    data.uniform_dequantization = False
    data.num_channels = 3
    data.tfrecords_path = '/elsewhere/ffhq-r10.tfrecords'
    config.model = model = ml_collections.ConfigDict()
    model.sigma_max = 1348
    model.sigma_min = 0.01
    model.num_scales = 2000
    model.beta_min = 0.1
    model.beta_max = 20.
    model.dropout = 0.
    model.embedding_type = 'fourier'
{NCSNPP}
    model.ema_rate = 0.9999
    model.nf = 16
    model.ch_mult = (1, 2, 4, 8, 16, 32, 32, 32)
    model.num_res_blocks = 1
    model.progressive = 'output_skip'
    model.progressive_input = 'input_skip'
    config.optim = optim = ml_collections.ConfigDict()
    optim.weight_decay = 0
    optim.optimizer = 'Adam'
    optim.lr = 2e-4
    optim.beta1 = 0.9
    optim.eps = 1e-8
    optim.warmup = 5000
    optim.grad_clip = 1.
    config.seed = 42
    config.device = torch.device('cuda:0') if torch.cuda.is_available() else torch.device('cpu')
    return config
"""

OWN_DEFAULTS = """
import ml_collections
import torch

def get_default_configs():
    config = ml_collections.ConfigDict()
    for section in ('training', 'sampling', 'eval', 'data', 'model', 'optim'):
        config[section] = ml_collections.ConfigDict()
    config.data.image_size = 48
    config.model.num_scales = 777
    config.device = torch.device('cuda:0') if torch.cuda.is_available() else torch.device('cpu')
    return config
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def same_sampler_and_network(ours: ConfigDict, theirs: ConfigDict) -> bool:
    """Everything that decides an image; the memory settings differ between the two trees."""
    a, b = ours.to_dict(), theirs.to_dict()
    for config in (a, b):
        config["sampling"].pop("microbatch")
    return all(a[section] == b[section] for section in ("sde", "model", "data", "sampling", "optim", "seed"))


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        (FFHQ, ffhq_ncsnpp_continuous),
        (BEDROOM, bedroom_ncsnpp_continuous),
        (CIFAR10, cifar10_ncsnpp_continuous),
    ],
    ids=["ffhq", "bedroom", "cifar10"],
)
def test_a_file_of_the_published_tree_means_the_config_we_ship_for_it(tmp_path, text, ours):
    loaded = score_sde.load_foreign(write(tmp_path / "anywhere.py", text))
    assert same_sampler_and_network(loaded, ours.get_config())
    assert loaded.training.ema_rate == ours.get_config().training.ema_rate
    assert loaded.training.num_steps == ours.get_config().training.num_steps
    check.validate(loaded)


def test_the_deep_and_the_church_file_differ_where_they_should(tmp_path):
    deep = score_sde.load_foreign(write(tmp_path / "deep.py", DEEP))
    assert (deep.model.num_res_blocks, deep.training.num_steps, deep.eval.batch_size) == (8, 950001, 960)
    church = score_sde.load_foreign(write(tmp_path / "church.py", CHURCH))
    assert (church.sde.sigma_max, church.sampling.microbatch, church.eval.num_samples) == (380.0, 2, 10)


def test_a_ddpm_file_predicts_noise_on_centered_images(tmp_path):
    loaded = score_sde.load_foreign(write(tmp_path / "ddpm.py", DDPM))
    assert (loaded.model.predicts, loaded.data.centered, loaded.sde.name) == ("eps", True, "vpsde")
    used = (
        "nf",
        "ch_mult",
        "num_res_blocks",
        "attn_resolutions",
        "conditional",
        "scale_by_sigma",
        "continuous",
        "dropout",
    )
    assert all(loaded.model[key] == cifar10_continuous.get_config().model[key] for key in used)
    assert loaded.sampling.predictor == "euler_maruyama" and loaded.sampling.corrector == "none"


def test_a_file_inside_its_own_tree_starts_from_the_defaults_of_that_tree(tmp_path):
    write(tmp_path / "configs" / "default_cifar10_configs.py", OWN_DEFAULTS)
    loaded = score_sde.load_foreign(write(tmp_path / "configs" / "ve" / "mine.py", CIFAR10))
    assert (loaded.data.image_size, loaded.sde.num_scales) == (48, 777)


@pytest.mark.parametrize(
    ("module", "size", "levels", "sigma_max", "snr", "dropout", "batch"),
    [
        ("default_cifar10_configs", 32, 1000, 50, 0.16, 0.1, 128),
        ("default_celeba_configs", 64, 1000, 90, 0.17, 0.1, 128),
        ("default_lsun_configs", 256, 2000, 378, 0.075, 0, 64),
    ],
)
def test_our_copies_of_the_defaults_are_the_published_ones(module, size, levels, sigma_max, snr, dropout, batch):
    theirs = score_sde_defaults.default_config(module)
    assert (theirs["data"]["image_size"], theirs["model"]["num_scales"]) == (size, levels)
    assert (theirs["model"]["sigma_max"], theirs["sampling"]["snr"]) == (sigma_max, snr)
    assert (theirs["model"]["dropout"], theirs["training"]["batch_size"]) == (dropout, batch)
    theirs["model"]["sigma_max"] = 1  # a copy each time
    assert score_sde_defaults.default_config(module)["model"]["sigma_max"] == sigma_max


def test_nothing_of_the_foreign_tree_stays_in_memory(tmp_path):
    before = dict(sys.modules)
    score_sde.load_foreign(write(tmp_path / "ffhq.py", FFHQ))
    write(tmp_path / "configs" / "default_cifar10_configs.py", OWN_DEFAULTS)
    score_sde.load_foreign(write(tmp_path / "configs" / "ve" / "mine.py", CIFAR10))
    with pytest.raises(ZeroDivisionError):
        score_sde.load_foreign(write(tmp_path / "broken.py", "import torch\n1 / 0\n"))
    assert {name for name in sys.modules if name.split(".")[0] in ("torch", "configs")} == {
        name for name in before if name.split(".")[0] in ("torch", "configs")
    }
    assert sys.modules["configs"] is configs


def test_a_real_torch_is_neither_used_nor_lost(tmp_path, monkeypatch):
    real = object()
    monkeypatch.setitem(sys.modules, "torch", real)
    score_sde.load_foreign(write(tmp_path / "ffhq.py", FFHQ))
    assert sys.modules["torch"] is real


def test_a_foreign_file_takes_a_method_and_goes_through_the_flag(tmp_path):
    path = write(tmp_path / "ffhq.py", FFHQ)
    assert score_sde.get_config(f"{path}:pc").sampling.method == "pc"
    assert score_sde.get_config(str(path)).sampling.method == "pds"


def test_a_command_line_is_redirected_for_foreign_files_only(tmp_path):
    foreign, ours = write(tmp_path / "ffhq.py", FFHQ), "configs/ve/demo.py:pc"
    through = f"{os.path.relpath(score_sde.__file__)}:{foreign}"
    for before, after in [
        (["main.py", "--config", str(foreign), "--alpha", "5"], ["main.py", "--config", through, "--alpha", "5"]),
        ([f"--config={foreign}:pc", "--config.seed=1"], [f"--config={through}:pc", "--config.seed=1"]),
        (["--config", ours, str(foreign)], ["--config", ours, str(foreign)]),
        (["--config", "missing.py", f"--workdir={foreign}"], ["--config", "missing.py", f"--workdir={foreign}"]),
    ]:
        assert score_sde.redirect(before) == after


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDENS.glob("*_tiny.json")))
def test_the_configs_beside_the_published_networks_translate_without_loss(name, caplog):
    theirs = json.loads((GOLDENS / f"{name}.json").read_text())["config"]
    assert score_sde.is_score_sde_layout(theirs)
    ours = score_sde.translate(theirs)
    check.validate(ours)
    assert not caplog.records  # every key was understood
    assert not score_sde.is_score_sde_layout(ours)
    for key in ("sigma_min", "sigma_max", "beta_min", "beta_max", "num_scales"):
        assert ours.sde[key] == theirs["model"][key]
    for key in set(theirs["model"]) & set(ours.model):
        value = theirs["model"][key]
        assert ours.model[key] == (tuple(value) if isinstance(value, list) else value)
    assert ours.sampling.predictor == theirs["sampling"]["predictor"].removesuffix("_sampling")
    assert ours.sampling.corrector == theirs["sampling"]["corrector"]
    assert ours.sde.name == theirs["training"]["sde"] and ours.model.continuous is theirs["training"]["continuous"]


def test_unknown_keys_are_listed_in_one_warning_and_left_out(caplog):
    theirs = json.loads((GOLDENS / "ve_bedroom_tiny.json").read_text())["config"]
    theirs["model"]["favourite_colour"] = "blue"
    theirs["data"]["uniform_dequantization"] = True
    with caplog.at_level(logging.WARNING):
        ours = score_sde.translate(theirs)
    assert len(caplog.records) == 1
    assert "data.uniform_dequantization, model.favourite_colour" in caplog.text
    assert "favourite_colour" not in ours.model


def test_a_switch_that_changes_the_network_unknowably_is_an_error():
    theirs = json.loads((GOLDENS / "ve_bedroom_tiny.json").read_text())["config"]
    theirs["model"]["attention_type"] = "linear"
    with pytest.raises(ValueError, match=r"model\.attention_type='linear' .* not supported; only 'ddpm'"):
        score_sde.translate(theirs)


def test_a_value_of_another_type_names_its_key():
    theirs = json.loads((GOLDENS / "ve_bedroom_tiny.json").read_text())["config"]
    theirs["model"]["nf"] = "many"
    with pytest.raises(ValueError, match=r"model\.nf='many' .* should be of type int"):
        score_sde.translate(theirs)


def test_a_missing_process_is_an_error_that_names_the_key():
    theirs = json.loads((GOLDENS / "ve_bedroom_tiny.json").read_text())["config"]
    del theirs["training"]["sde"]
    with pytest.raises(ValueError, match=r"lacks training\.sde"):
        score_sde.translate(theirs)


def test_likelihood_weighting_becomes_our_weighting():
    theirs = json.loads((GOLDENS / "ve_bedroom_tiny.json").read_text())["config"]
    assert score_sde.translate(theirs).training.weighting == "eps"
    theirs["training"]["likelihood_weighting"] = True
    assert score_sde.translate(theirs).training.weighting == "likelihood"


def test_foreign_files_are_told_from_ours_without_running_them(tmp_path):
    for i, text in enumerate([FFHQ, BEDROOM, DDPM, FFHQ.replace("import torch", "")]):
        assert score_sde.is_foreign(write(tmp_path / f"{i}.py", "raise SystemExit\n" + text))
    for path in Path(configs.__file__).parent.rglob("*.py"):
        assert not score_sde.is_foreign(path), path


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import torch", r"no function get_config\(\)"),
        ("import numpy_of_another_world", r"cannot be run: No module named 'numpy_of_another_world'.*own tree"),
        ("from configs.default_svhn_configs import get_default_configs", r"default_svhn_configs.*own tree"),
        ("def get_config(): return {'model': {}}", r"no model\.num_scales"),
    ],
)
def test_a_file_that_is_no_config_says_what_is_missing(tmp_path, text, error):
    with pytest.raises(ValueError, match=error):
        score_sde.load_foreign(write(tmp_path / "odd.py", text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No config file .*nowhere\.py; --config names"):
        score_sde.load_foreign(tmp_path / "nowhere.py")
