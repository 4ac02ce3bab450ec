"""Latent models from a diffusers pipeline and from CompVis' file: the same networks and config, clear refusals."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from latent_cases import cases, compvis_codec, compvis_unet, config_of, open_clip, tensors_of
from test_checkpoints_compvis import save

import checkpoints
import models
import run_lib
import sde_lib
from benchmarks.peers.latent_goldens import drawn
from builders import latent_parts
from builders.config import resolve_config
from builders.model import create_network
from checkpoints import fitting
from checkpoints.base import unflatten
from configs import diffusers
from configs.latent import ldm_lsun_bedroom

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}


def write_part(folder, case, stem, dtype=np.float32):
    folder.mkdir(parents=True)
    config = config_of(case)
    if stem == "model":
        config |= {"architectures": [config.pop("_class_name")], "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(tensor.astype(dtype)) for name, tensor in tensors_of(case).items()}
    safetensors.numpy.save_file(tensors, folder / f"{stem}.safetensors")


def write_pipeline(folder, unet="sd1", vae="kl", dtype=np.float32):
    write_part(folder / "unet", unet, "diffusion_pytorch_model", dtype)
    write_part(folder / "vae", vae, "diffusion_pytorch_model", dtype)
    write_part(folder / "text_encoder", "text", "model", dtype)
    for name, content in (("scheduler/scheduler_config.json", SCHEDULER), ("model_index.json", INDEX)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer").mkdir()
    return folder


@pytest.fixture
def pipeline(tmp_path):
    return write_pipeline(tmp_path / "pipeline")


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_pipeline_gives_its_networks_process_and_settings(pipeline):
    stored = checkpoints.read(pipeline)
    assert stored.extra["tokenizer"] == pipeline / "tokenizer"
    assert any("feature_extractor" in note for note in stored.notes)
    model = run_lib.load(checkpoint=pipeline)
    config = model.config
    assert model.shape == (4, 4, 4) and config.model.name == "unet2d_condition" and config.model.predicts == "v"
    assert model.sde == sde_lib.DiscreteVPSDE("scaled_linear", 0.85, 12.0, 1000) and model.denoiser.told == "index"
    kernel = model.denoiser.params["down_blocks_0_attentions_0"]["proj_in"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors_of("sd1")["down_blocks.0.attentions.0.proj_in.weight"][:, :, 0, 0].T)
    assert (config.latent.kind, config.latent.scale_factor, config.latent.channels) == ("kl", 0.18215, 4)
    codec, params = latent_parts.load_codec(stored, config)
    assert codec.factor == 2
    kernel = params["encoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors_of("kl")["encoder.conv_in.weight"].transpose(2, 3, 1, 0))
    text, params = latent_parts.load_text_encoder(stored, config)
    assert (text.width, text.max_tokens, text.projection_dim, text.eos_token_id) == (8, 7, 6, 39)
    table = params["embeddings_token_embedding"]["embedding"]
    np.testing.assert_array_equal(table, tensors_of("text")["text_model.embeddings.token_embedding.weight"])


def test_half_precision_files_widen_and_shards_are_joined(pipeline, tmp_path):
    half = write_pipeline(tmp_path / "half", dtype=np.float16)
    stored = checkpoints.read(half)
    kernel = latent_parts.load_codec(stored, resolve_config(None, stored))[1]["decoder"]["conv_in"]["kernel"]
    assert stored.raw["conv_in.weight"].dtype == np.float16 and kernel.dtype == np.float32
    whole = tensors_of("kl")["decoder.conv_in.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, whole.astype(np.float16))
    tensors = list(tensors_of("sd1").items())
    unet = pipeline / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((tensors[:40], tensors[40:])):
        safetensors.numpy.save_file(dict(part), unet / f"shard-{number}.safetensors")
        weight_map |= {name: f"shard-{number}.safetensors" for name, _ in part}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(checkpoints.read(pipeline).raw) == set(tensors_of("sd1"))
    (unet / "shard-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard-1.safetensors is missing"):
        checkpoints.read(pipeline)


@pytest.mark.parametrize(
    "missing",
    ["unet", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "tokenizer", "text_encoder"],
)
def test_a_pipeline_that_is_not_whole_names_the_missing_file(pipeline, missing):
    path = pipeline / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing}.* is missing: the folder is not whole"):
        checkpoints.read(pipeline)


def test_missing_weights_are_named(pipeline):
    (pipeline / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="vae has none of diffusion_pytorch_model.safetensors"):
        checkpoints.read(pipeline)


def test_a_network_that_sees_more_than_a_latent_is_refused(pipeline):
    (pipeline / "unet" / "config.json").write_text(json.dumps(config_of("sd1", in_channels=9)))
    with pytest.raises(ValueError, match="in_channels=9 are not the 4 of a latent.*inpainting"):
        run_lib.load(checkpoint=pipeline)


@pytest.fixture
def ckpt(tmp_path):
    """The networks of the pipeline in CompVis' file: text as open_clip has it, raw weights of the U-Net halved."""
    unet = compvis_unet("sd1")
    state = {f"model.diffusion_model.{name}": 0.5 * tensor for name, tensor in unet.items()}
    state |= {f"model_ema.{('diffusion_model.' + name).replace('.', '')}": tensor for name, tensor in unet.items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in compvis_codec("kl").items()}
    state |= {
        f"cond_stage_model.model.{name}": tensor
        for name, tensor in open_clip("text").items()
        if "projection" not in name
    }
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return save(tmp_path / "model.ckpt", {**state, "betas": betas.astype(np.float32)}, global_step=3)


def test_both_containers_give_the_same_networks(pipeline, ckpt):
    folder, config = checkpoints.read(pipeline), resolve_config(None, checkpoints.read(pipeline))
    stored = checkpoints.read(ckpt)
    config.latent.text.projection_dim = 0  # of which Stable Diffusion makes no use
    ours, theirs = run_lib.load(config, ckpt), run_lib.load(checkpoint=pipeline)
    equal(ours.denoiser.params, theirs.denoiser.params)
    equal(latent_parts.load_codec(stored, config)[1], latent_parts.load_codec(folder, config)[1])
    np.testing.assert_array_equal(stored.weights(ema=False)["out.2.bias"], 0.5 * stored.weights()["out.2.bias"])


def test_the_architecture_of_a_file_is_read_off_its_tensors(pipeline, ckpt):
    expected, found = resolve_config(None, checkpoints.read(pipeline)), resolve_config(None, checkpoints.read(ckpt))
    names = ["name", "nf", "ch_mult", "num_res_blocks", "down_block_types", "up_block_types", "cross_attention_dim"]
    names += ["transformer_layers_per_block", "out_channels", "mid_block_type"]
    assert {name: found.model[name] for name in names} == {name: expected.model[name] for name in names}
    names = ["kind", "scale_factor", "channels", "block_out_channels", "layers_per_block", "mid_attention"]
    names += ["down_block_types", "up_block_types", "quant_conv", "post_quant_conv"]
    assert {name: found.latent[name] for name in names} == {name: expected.latent[name] for name in names}
    names = ["kind", "width", "num_layers", "mlp_width", "vocab_size", "max_tokens", "eos_token_id"]
    assert {name: found.latent.text[name] for name in names} == {name: expected.latent.text[name] for name in names}
    assert dict(found.sde) == dict(expected.sde)
    assert found.model.predicts == "eps"  # which no tensor shows
    assert run_lib.load(checkpoint=ckpt).config.data.num_channels == 4


def test_an_unconditional_file_is_the_network_of_adm_under_its_own_names(tmp_path):
    config = ldm_lsun_bedroom.get_config()
    config.model.update(nf=32, ch_mult=(1, 2), attn_resolutions=(4,), num_head_channels=16)
    config.data.image_size = 8
    config.latent.kind = "none"
    shapes = fitting.shapes(models.param_shapes(create_network(config), (8, 8, 3)))
    params = {path: drawn(path, shape) for path, shape in shapes.items()}
    state = {}
    for path, tensor in params.items():
        *parents, leaf = re.sub(r"_(\d+)", r".\1", path).split("/")
        name = ".".join([*parents, "weight" if leaf in ("kernel", "scale") else leaf])
        tensor = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        tensor = tensor[:, :, None] if name.endswith(("qkv.weight", "proj_out.weight")) else tensor
        tensor = np.ascontiguousarray(tensor)
        state |= {f"model.diffusion_model.{name}": 2 * tensor}
        state |= {f"model_ema.{('diffusion_model.' + name).replace('.', '')}": tensor}
    path = save(tmp_path / "uncond.ckpt", state)
    loaded = run_lib.load(config, path).denoiser.params
    equal(loaded, unflatten(params))
    with pytest.raises(ValueError, match="does not carry its architecture, and no shipped config has its tensors"):
        run_lib.load(checkpoint=path)


def test_a_pipeline_of_an_unconditional_network_and_a_codebook():
    config = dict(_class_name="UNet2DModel", sample_size=8, in_channels=2, out_channels=2, attention_head_dim=32)
    scheduler = SCHEDULER | {"prediction_type": "epsilon", "beta_start": 0.0015, "beta_end": 0.0195}
    found = diffusers.translate(config, scheduler, "folder", {"vae": config_of("vq")})
    assert (found.latent.kind, found.latent.scale_factor, found.latent.num_vq_embeddings) == ("vq", 1.0, 12)
    assert (found.model.name, found.sde.beta_max, found.latent.text.kind) == ("unet2d", 19.5, "none")


def test_a_file_without_the_part_that_is_asked_for_is_refused(tmp_path):
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in compvis_unet("sd1").items()}
    stored = checkpoints.read(save(tmp_path / "unet.ckpt", state))
    config = resolve_config(None, stored)
    assert config.latent.kind == "none" and config.latent.text.kind == "none"
    config.latent.kind = "kl"
    with pytest.raises(ValueError, match="unet.ckpt holds no codec; a latent model needs its whole folder"):
        latent_parts.load_codec(stored, config)


def test_both_encoders_of_a_clip_folder_are_loaded(tmp_path):
    settings = {
        "text_config": cases()["text"]["config"],
        "vision_config": cases()["image"]["config"],
        "projection_dim": 6,
    }
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], **settings}))
    together = {**tensors_of("text"), **tensors_of("image"), "logit_scale": np.ones(1, np.float32)}
    safetensors.numpy.save_file(together, tmp_path / "model.safetensors")
    text, text_params, image, image_params = latent_parts.load_clip(tmp_path)
    assert (text.projection_dim, image.projection_dim, image.image_size, image.patch_size) == (6, 6, 8, 4)
    np.testing.assert_array_equal(text_params["text_projection"]["kernel"].T, together["text_projection.weight"])
    np.testing.assert_array_equal(image_params["visual_projection"]["kernel"].T, together["visual_projection.weight"])
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    with pytest.raises(ValueError, match="has no text_config and vision_config; a whole CLIPModel is needed"):
        latent_parts.load_clip(tmp_path)
