"""The published configs against the published table of hyper-parameters and the parameter counts of the weights."""

import importlib
import math
from pathlib import Path

import jax
import pytest

from configs import check, methods
from models import create_network, param_shapes

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for family in ("ve", "vp", "subvp", "adm")
    for path in (CONFIGS / family).rglob("*.py")
)


def load(file: str, method: str = ""):
    name = "configs." + file.removesuffix(".py").replace("/", ".")
    return importlib.import_module(name).get_config(method)


# file: SDE, continuous, embedding, blocks, fir, progressive, progressive_input, predictor, corrector
TABLE = {
    "ve/cifar10_ncsnpp": "vesde 0 positional 4 1 none residual reverse_diffusion langevin",
    "ve/cifar10_ncsnpp_continuous": "vesde 1 fourier 4 1 none residual reverse_diffusion langevin",
    "ve/cifar10_ncsnpp_deep_continuous": "vesde 1 fourier 8 1 none residual reverse_diffusion langevin",
    "ve/celeba_ncsnpp": "vesde 0 positional 4 1 none residual reverse_diffusion langevin",
    "ve/bedroom_ncsnpp_continuous": "vesde 1 fourier 2 1 output_skip input_skip reverse_diffusion langevin",
    "ve/church_ncsnpp_continuous": "vesde 1 fourier 2 1 output_skip input_skip reverse_diffusion langevin",
    "ve/ffhq_256_ncsnpp_continuous": "vesde 1 fourier 2 1 output_skip input_skip reverse_diffusion langevin",
    "ve/celebahq_256_ncsnpp_continuous": "vesde 1 fourier 2 1 output_skip input_skip reverse_diffusion langevin",
    "ve/ffhq_ncsnpp_continuous": "vesde 1 fourier 1 1 output_skip input_skip reverse_diffusion langevin",
    "ve/celebahq_ncsnpp_continuous": "vesde 1 fourier 1 1 output_skip input_skip reverse_diffusion langevin",
    "vp/cifar10_ncsnpp": "vpsde 0 positional 4 1 none residual reverse_diffusion none",
    "vp/cifar10_ncsnpp_continuous": "vpsde 1 positional 4 1 none residual euler_maruyama none",
    "vp/cifar10_ncsnpp_deep_continuous": "vpsde 1 positional 8 1 none residual euler_maruyama none",
    "vp/cifar10_ddpmpp": "vpsde 0 positional 4 0 none none ancestral none",
    "vp/cifar10_ddpmpp_continuous": "vpsde 1 positional 4 0 none none euler_maruyama none",
    "vp/cifar10_ddpmpp_deep_continuous": "vpsde 1 positional 8 0 none none euler_maruyama none",
    "subvp/cifar10_ddpmpp_continuous": "subvpsde 1 positional 4 0 none none euler_maruyama none",
    "subvp/cifar10_ddpmpp_deep_continuous": "subvpsde 1 positional 8 0 none none euler_maruyama none",
    "subvp/cifar10_ncsnpp_continuous": "subvpsde 1 positional 4 1 none residual euler_maruyama none",
    "subvp/cifar10_ncsnpp_deep_continuous": "subvpsde 1 positional 8 1 none residual euler_maruyama none",
    # The networks ddpm and ncsnv2_64 have no switch for what is left open here.
    "ve/cifar10_ddpm": "vesde 0 positional 2 - - - reverse_diffusion langevin",
    "vp/ddpm/cifar10": "vpsde 0 positional 2 - - - ancestral none",
    "vp/ddpm/cifar10_continuous": "vpsde 1 positional 2 - - - euler_maruyama none",
    "vp/ddpm/bedroom": "vpsde 0 positional 2 - - - ancestral none",
    "vp/ddpm/church": "vpsde 0 positional 2 - - - ancestral none",
    "vp/ddpm/celebahq": "vpsde 0 positional 2 - - - ancestral none",
    "subvp/cifar10_ddpm_continuous": "subvpsde 1 positional 2 - - - euler_maruyama none",
    "ve/ncsnv2/cifar10": "vesde 0 - - - - - none ald",
    "ve/ncsnv2/celeba": "vesde 0 - - - - - none ald",
}

# file: image size, levels, largest sigma (VE), snr, nf, channels, dropout, decay of the average
SIZES = {
    "ve/cifar10_ncsnpp_continuous": (32, 1000, 50.0, 0.16, 128, (1, 2, 2, 2), 0.1, 0.999),
    "ve/celeba_ncsnpp": (64, 1000, 90.0, 0.17, 128, (1, 2, 2, 2), 0.1, 0.999),
    "ve/bedroom_ncsnpp_continuous": (256, 2000, 378.0, 0.075, 128, (1, 1, 2, 2, 2, 2, 2), 0.0, 0.999),
    "ve/church_ncsnpp_continuous": (256, 2000, 380.0, 0.075, 128, (1, 1, 2, 2, 2, 2, 2), 0.0, 0.999),
    "ve/ffhq_256_ncsnpp_continuous": (256, 2000, 348.0, 0.075, 128, (1, 1, 2, 2, 2, 2, 2), 0.0, 0.999),
    "ve/celebahq_256_ncsnpp_continuous": (256, 2000, 348.0, 0.075, 128, (1, 1, 2, 2, 2, 2, 2), 0.0, 0.999),
    "ve/ffhq_ncsnpp_continuous": (1024, 2000, 1348.0, 0.15, 16, (1, 2, 4, 8, 16, 32, 32, 32), 0.0, 0.9999),
    "ve/celebahq_ncsnpp_continuous": (1024, 2000, 1348.0, 0.15, 16, (1, 2, 4, 8, 16, 32, 32, 32), 0.0, 0.9999),
    "ve/ncsnv2/cifar10": (32, 232, 50.0, 0.176, 128, None, 0.1, 0.999),
    "ve/ncsnv2/celeba": (64, 500, 90.0, 0.128, 128, None, 0.1, 0.999),
    "vp/cifar10_ddpmpp": (32, 1000, None, 0.16, 128, (1, 2, 2, 2), 0.1, 0.9999),
    "vp/ddpm/church": (256, 1000, None, 0.16, 128, (1, 1, 2, 2, 4, 4), 0.0, 0.9999),
    "subvp/cifar10_ddpm_continuous": (32, 1000, None, 0.16, 128, (1, 2, 2, 2), 0.1, 0.9999),
}

# Counted in the published PyTorch networks, the Fourier frequencies included.
PARAMETERS = {
    "ve/cifar10_ncsnpp_continuous": 62_758_915,
    "ve/cifar10_ncsnpp": 62_693_251,
    "ve/cifar10_ncsnpp_deep_continuous": 107_587_075,
    "ve/bedroom_ncsnpp_continuous": 65_574_549,
    "ve/ffhq_ncsnpp_continuous": 105_785_896,
    "vp/cifar10_ddpmpp_continuous": 61_804_419,
    "vp/cifar10_ddpmpp_deep_continuous": 106_632_579,
    "vp/ddpm/cifar10": 35_218_947,
    "vp/ddpm/celebahq": 111_569_923,
}


def test_every_published_config_whose_network_runs_is_shipped():
    assert {file.removesuffix(".py") for file in FILES} >= set(TABLE)


@pytest.mark.parametrize("file", TABLE)
def test_the_switches_are_the_published_ones(file):
    config = load(file)
    model, sampling = config.model, config.sampling
    ours = (
        config.sde.name,
        int(model.continuous),
        model.embedding_type,
        model.num_res_blocks,
        int(model.fir),
        model.progressive,
        model.progressive_input,
        sampling.predictor,
        sampling.corrector,
    )
    differing = [(a, b) for a, b in zip(map(str, ours), TABLE[file].split(), strict=True) if b not in ("-", a)]
    assert not differing


@pytest.mark.parametrize("file", TABLE)
def test_range_scaling_and_loss_follow_from_the_process(file):
    config, is_ve = load(file), file.startswith("ve/")
    assert config.data.centered is not is_ve
    assert config.model.scale_by_sigma is is_ve
    assert config.model.predicts == ("score" if is_ve else "eps")
    assert config.training.reduce_mean is (not is_ve or config.data.image_size == 1024)
    assert config.sampling.n_steps_each == (5 if "ncsnv2" in file else 1)
    assert config.sampling.noise_removal and not config.sampling.probability_flow


@pytest.mark.parametrize("file", SIZES)
def test_sizes_and_noise_ranges_are_the_published_ones(file):
    config = load(file)
    size, levels, sigma_max, snr, nf, ch_mult, dropout, ema_rate = SIZES[file]
    assert (config.data.image_size, config.sde.num_scales) == (size, levels)
    assert (config.sampling.snr, config.model.nf) == (snr, nf)
    assert (config.model.dropout, config.training.ema_rate) == (dropout, ema_rate)
    assert sigma_max is None or (config.sde.sigma_min, config.sde.sigma_max) == (0.01, sigma_max)
    assert ch_mult is None or config.model.ch_mult == ch_mult


@pytest.mark.parametrize("file", PARAMETERS)
def test_the_network_has_as_many_parameters_as_the_published_weights(file):
    config = load(file)
    network = create_network(
        config.model.name, config.model.to_dict(), centered=config.data.centered, discrete_sigmas=(1.0,)
    )
    shapes = param_shapes(network, (config.data.image_size, config.data.image_size, config.data.num_channels))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[file]


@pytest.mark.parametrize("file", FILES)
def test_every_file_passes_its_own_checks_and_names_itself_in_its_command(file):
    config = load(file)
    check.validate(config)
    assert set(config.sampling) == set(load("ve/cifar10_ncsnpp.py").sampling)
    assert (
        f"--config configs/{file} --workdir"
        in importlib.import_module("configs." + file.removesuffix(".py").replace("/", ".")).__doc__
    )


@pytest.mark.parametrize("file", FILES)
def test_every_file_takes_a_method(file):
    assert load(file, "pds_corrector_only").sampling.pds_mode == "corrector_only"
    with pytest.raises(ValueError, match=r"method 'pdss' is unknown; choose one of \[.*'pc', 'pds'"):
        load(file, "pdss")


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_method_changes_only_the_keys_it_names(method):
    plain, edited = (
        load("ve/ffhq_ncsnpp_continuous.py").to_dict(),
        load("ve/ffhq_ncsnpp_continuous.py", method).to_dict(),
    )
    edits = methods.METHODS[method]
    for section, values in plain.items():
        expected = {**values, **edits[section]} if section in edits else values
        assert edited[section] == expected


@pytest.mark.parametrize("mode", ["paper", "marginal", "corrector_only"])
def test_a_pds_mode_is_a_method_of_its_name(mode):
    sampling = load("ve/ffhq_ncsnpp_continuous.py", f"pds_{mode}").sampling
    assert (sampling.method, sampling.pds_mode) == ("pds", mode)
    assert sampling.step_norm == ("batch" if mode == "paper" else "sample")


def test_pc_is_the_sampler_without_a_preconditioner():
    assert load("ve/ffhq_ncsnpp_continuous.py", "pc").sampling.method == "pc"
