"""UNet2DModel folders: recorded outputs of diffusers, config.json and scheduler to our config, old names, refusals.

The weights are drawn here by the recipe of tests/goldens/diffusers/README.md and written as a folder, so that every
test starts from config.json + safetensors, as a user does.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import checkpoints
import models
import run_lib
import sde_lib
from configs import diffusers
from models import unet2d

GOLDENS = Path(__file__).parent / "goldens" / "diffusers"
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CHAIN = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}


@functools.cache
def golden():
    with np.load(GOLDENS / "unet2d.npz") as file:
        return {key: file[key] for key in file.files}


NAMES = sorted({key.split("/")[0] for key in golden()})


def weights(name):
    """The state dict of the recorded network, and the noise that its input is drawn from next."""
    rng, tensors = np.random.RandomState(0), {}
    for key, shape in json.loads(str(golden()[f"{name}/shapes"])).items():
        z = rng.standard_normal(shape)
        if z.ndim > 1:
            z /= np.sqrt(np.prod(shape[1:]))
        elif key == "time_proj.weight":
            z *= 16
        elif "norm" in key and key.endswith("weight"):
            z = 1 + 0.2 * z
        else:
            z *= 0.1
        tensors[key] = z.astype(np.float32)
    return tensors, rng


def write_folder(folder, name, tensors, scheduler=None, **changes):
    config = json.loads(str(golden()[f"{name}/config"])) | changes
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    if scheduler is not None:
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_network_of_a_folder_equals_the_recorded_one(name, tmp_path):
    tensors, rng = weights(name)
    model = run_lib.load(checkpoint=write_folder(tmp_path, name, tensors))
    x = rng.standard_normal((2, model.config.data.num_channels, 8, 8)).astype(np.float32).transpose(0, 2, 3, 1)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model.denoiser.params)
    classes = golden().get(f"{name}/classes")
    conditions = {} if classes is None else {"classes": jnp.asarray(classes)}
    labels = jnp.asarray(golden()[f"{name}/labels"], jnp.float64)
    network = jax.jit(model.denoiser.network, compiler_options=FAST_COMPILE)
    ours = np.moveaxis(np.asarray(network(params, jnp.asarray(x, jnp.float64), labels, **conditions)), -1, 1)
    theirs = golden()[f"{name}/output"]
    # Their sinusoids are float32 even where the rest is float64.
    tolerance = 1e-6 if model.config.model.embedding_type == "positional" else 1e-10
    assert ours.shape == theirs.shape
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True)) < tolerance


def test_names_of_old_folders_give_the_same_parameters(tmp_path):
    def old(key):
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".{new}.", f".{before}.")
        return key

    tensors, _ = weights("ncsnpp")
    renamed = {old(key): value for key, value in tensors.items()} | {"time_proj.W": tensors["time_proj.weight"]}
    assert sum(key.split(".")[-2] in ("query", "key", "value", "proj_attn") for key in renamed) == 24
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    new = run_lib.load(checkpoint=write_folder(tmp_path / "new", "ncsnpp", tensors))
    before = run_lib.load(checkpoint=write_folder(tmp_path / "old", "ncsnpp", renamed))
    jax.tree.map(np.testing.assert_array_equal, new.denoiser.params, before.denoiser.params)


def test_a_class_conditional_folder_asks_for_classes(tmp_path):
    tensors, _ = weights("consistency")
    model = run_lib.load(checkpoint=write_folder(tmp_path, "consistency", tensors))
    assert model.config.data.num_classes == 5
    with pytest.raises(ValueError, match="conditional on classes and was given none.*--labels"):
        jax.eval_shape(model.denoiser.denoise, jnp.zeros((1, 8, 8, 3)), jnp.ones(()))


def test_half_precision_keeps_the_first_and_the_last_layer_in_float32():
    settings = dict(nf=32, ch_mult=(1, 1), num_res_blocks=1, norm_num_groups=8, embedding_type="fourier")
    blocks = dict(down_block_types=("SkipDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "SkipUpBlock2D"))
    network = models.create_network("unet2d", settings | blocks, dtype=jnp.bfloat16)
    x, labels = jnp.ones((1, 8, 8, 3), jnp.float32), jnp.ones((1,), jnp.float32)
    output, state = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), x, labels, capture_intermediates=True)
    )
    seen = {name: value["__call__"][0].dtype for name, value in state["intermediates"].items() if "__call__" in value}
    assert output.dtype == seen["conv_in"] == seen["conv_out"] == jnp.float32
    assert seen["down_blocks_0_resnets_0"] == seen["mid_block_resnets_0"] == jnp.bfloat16


def config_json(name="ddpm", **changes):
    return json.loads(str(golden()[f"{name}/config"])) | changes


def sde_of(config):
    return sde_lib.create_sde(**config.sde.to_dict())


def test_the_scheduler_of_a_chain_gives_its_betas_and_what_is_predicted():
    scheduler = CHAIN | dict(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        num_train_timesteps=500,
        prediction_type="v_prediction",
    )
    config = diffusers.translate(config_json(), scheduler, "folder")
    np.testing.assert_allclose(
        sde_of(config).discrete_betas(), np.linspace(0.0015**0.5, 0.0195**0.5, 500) ** 2, rtol=1e-12
    )
    assert config.model.predicts == "v" and config.data.centered
    cosine = diffusers.translate(config_json(), CHAIN | {"beta_schedule": "squaredcos_cap_v2"}, "folder")
    assert cosine.sde.schedule == "cosine" and cosine.model.predicts == "eps"


@pytest.mark.parametrize("name", ["ddpm", "ncsnpp"])
def test_a_folder_without_scheduler_has_the_conventions_of_the_published_ones(name):
    config = diffusers.translate(config_json(name), None, "folder")
    if name == "ddpm":
        np.testing.assert_allclose(sde_of(config).discrete_betas(), np.linspace(1e-4, 0.02, 1000), rtol=1e-12)
        assert config.model.predicts == "eps" and config.data.centered
    else:
        assert isinstance(sde_of(config), sde_lib.VESDE)
        assert config.model.predicts == "score" and not config.data.centered


def test_schedulers_of_other_processes_are_understood():
    def process(**scheduler):
        return diffusers.translate(config_json("ncsnpp"), scheduler, "folder")

    ve = process(_class_name="ScoreSdeVeScheduler", sigma_min=0.02, sigma_max=348.0, num_train_timesteps=2000, snr=0.17)
    assert sde_of(ve) == sde_lib.VESDE(0.02, 348.0, 2000) and ve.sampling.snr == 0.17
    karras = process(_class_name="KarrasVeScheduler", sigma_min=0.02, sigma_max=100)
    assert (karras.sde.sigma_min, karras.sde.sigma_max, karras.data.centered) == (0.01, 50.0, False)
    vp = process(_class_name="ScoreSdeVpScheduler", beta_min=0.2, beta_max=19)
    assert sde_of(vp) == sde_lib.VPSDE(0.2, 19.0, 2000) and vp.model.predicts == "eps" and vp.data.centered
    edm = process(_class_name="EDMEulerScheduler", sigma_max=60.0, sigma_data=0.4)
    assert sde_of(edm) == sde_lib.EDMSDE(0.002, 60.0, 7.0)
    assert (edm.model.scaling, edm.model.scaling_label, edm.model.sigma_data) == ("edm", "c_noise", 0.4)


@pytest.mark.parametrize(
    ("changes", "scheduler", "message"),
    [
        ({"_class_name": "UNet3DConditionModel"}, None, "of a 'UNet3DConditionModel'; only UNet2DModel and"),
        ({"sample_size": None}, None, "sample_size in config.json is None; set it"),
        ({"sample_size": [8, 16]}, None, r"sample_size in config.json is \[8, 16\]"),
        ({"transformer_depth": 2}, None, "config.json has transformer_depth, which this version does not know"),
        ({}, {"_class_name": "CMStochasticIterativeScheduler"}, "CMStochasticIterativeScheduler has no beta_schedule"),
        ({}, CHAIN | {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' of the scheduler is not supported"),
        ({}, CHAIN | {"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({}, CHAIN | {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        ({}, {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "'v_prediction'.*epsilon"),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_key(changes, scheduler, message):
    with pytest.raises(ValueError, match=f"^folder: .*{message}"):
        diffusers.translate(config_json(**changes), scheduler, "folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"down_block_types": ["KDownBlock2D", "DownBlock2D", "DownBlock2D"]},
            r"down_block_types has \['KDownBlock2D'\]",
        ),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 entries for 3 levels"),
        ({"norm_num_groups": None}, "norm_num_groups=None, but"),
        ({"embedding_type": "learned"}, "'learned' needs config.model.num_train_timesteps"),
        ({"act_fn": "tanh"}, r"act_fn='tanh' is unknown; choose one of \('silu'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_by_key(changes, message):
    config = diffusers.translate(config_json(), None, "folder")
    with pytest.raises(ValueError, match=message):
        models.create_network("unet2d", config.model.to_dict() | changes)


def test_every_setting_of_the_network_is_read_from_the_file():
    fields = {field.name for field in dataclasses.fields(unet2d.UNet2D)} - {"parent", "name", "dtype", "num_classes"}
    config = diffusers.translate({"_class_name": "UNet2DModel", "sample_size": 64}, None, "folder")
    assert fields <= set(config.model)
    network = models.create_network("unet2d", config.model.to_dict())
    assert network == unet2d.UNet2D()


def test_a_folder_that_does_not_fit_its_own_config_is_refused(tmp_path):
    tensors, _ = weights("no_middle")
    tensors.pop("conv_in.bias")
    with pytest.raises(ValueError, match="1 missing: conv_in/bias"):
        run_lib.load(checkpoint=write_folder(tmp_path, "no_middle", tensors))
    assert checkpoints.read(tmp_path).format == "diffusers"
