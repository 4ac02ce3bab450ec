"""The shipped ADM configs: every tensor of the released pairs, by name and shape; published settings; bad ones."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from golden_files import golden_folder

import models
from builders import classifier
from builders.model import create_denoiser, create_network
from checkpoints import fitting, names
from configs import check
from models import edm

FILES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs" / "adm").glob("*.py"))


def config_of(name):
    return importlib.import_module(f"configs.adm.{name}").get_config()


def differences(shapes, network, size):
    """Between the tensors of a released file and our network; nothing is allocated."""
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    expected = fitting.shapes(models.param_shapes(network, (size, size, 3)))
    return fitting.compare(names.flax_names_dotted(tensors, expected), expected)


@pytest.mark.parametrize("name", ["c64", "c128", "c256", "u256", "c512"])
def test_every_tensor_of_the_released_pair_has_its_place(name):
    released = json.loads((golden_folder("adm") / "adm_full_shapes.json").read_text())[name]
    config = config_of(name)
    size = config.data.image_size
    unet = differences(released["unet"], create_network(config), size)
    encoder = differences(released["classifier"], classifier.create_network(config.classifier), size)
    assert unet.fits() and not unet.reshaped, unet.report()
    assert encoder.fits() and not encoder.reshaped, encoder.report()


@pytest.mark.parametrize("name", FILES)
def test_every_config_builds_a_denoiser_on_its_process(name):
    config = config_of(name)
    denoiser = create_denoiser(config, None)
    if name == "edm_bedroom256":
        assert denoiser.network.label == "1000c_noise" and denoiser.network.scaling == edm.EDMScaling(0.5)
        assert (denoiser.predicts, denoiser.told, denoiser.sde.sigma_max) == ("x0", "sigma", 80.0)
    else:
        assert (denoiser.predicts, denoiser.told) == ("eps", "index")
        assert denoiser.sde.schedule == ("cosine" if name == "c64" else "linear")
    assert config_of(name).data.centered


def test_scales_classes_and_attention_are_the_published_ones():
    scales = {name: config_of(name).guidance.scale for name in ("c64", "c128", "c256", "u256", "c512")}
    assert scales == {"c64": 0.1, "c128": 1.25, "c256": 2.5, "u256": 10.0, "c512": 9.0}
    unconditional = {name for name in FILES if config_of(name).data.num_classes == 0}
    assert unconditional == {"u256", "edm_bedroom256", "lsun_bedroom", "lsun_cat", "lsun_horse"}
    assert {name for name in FILES if config_of(name).model.use_new_attention_order} == {"c64", "edm_bedroom256"}
    upsamplers = {name: config_of(name).model for name in FILES if config_of(name).model.super_resolution}
    heads = {name: (model.num_head_channels, model.num_heads) for name, model in upsamplers.items()}
    assert heads == {"upsample_128_512": (64, 1), "upsample_64_256": (-1, 4)}


def test_a_width_that_adm_cannot_normalise_is_refused():
    config = config_of("c512")
    config.model.nf = 100
    with pytest.raises(ValueError, match=r"config.model.nf=100 .* puts 50 channels .*divisible by 32"):
        check.validate(config)
    config.data.image_size = 100
    with pytest.raises(ValueError, match="image_size=100 cannot be halved 6 times"):
        check.validate(config)
