"""Where diffusers and transformers are installed: folders as they write them, and their own conversion of names."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import FAST_COMPILE, cases, compvis_codec, compvis_unet, open_clip, tensors_of

import checkpoints
import run_lib
from benchmarks.peers.latent_goldens import CASES, CROSS, UNET, create, drawn
from builders import latent_parts
from checkpoints import compvis_names, latent_names, names
from checkpoints.base import Part

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

PLAIN = dict(down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, mid_block_type="UNetMidBlock2D")
RESNETS = dict(
    down_block_types=["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
)
WIDE = dict(sample_size=4, in_channels=4, norm_num_groups=4, attention_head_dim=2, cross_attention_dim=8)
# Networks beyond the recorded ones.
UNETS = {
    "plain": UNET | PLAIN | dict(act_fn="gelu", time_embedding_dim=24),
    "resnets": UNET | RESNETS | dict(attention_head_dim=2, cross_attention_dim=6, norm_eps=1e-4),
    "timestep": UNET | CROSS | dict(attention_head_dim=2, cross_attention_dim=6, class_embed_type="timestep"),
    "middle": UNET | CROSS | dict(attention_head_dim=2, cross_attention_dim=6, mid_block_type=None),
    "three": WIDE
    | dict(
        block_out_channels=[8, 12, 16],
        layers_per_block=2,
        transformer_layers_per_block=[1, 2, 3],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    ),
}


def randomised(network):
    state = {name: torch.from_numpy(drawn(name, value.shape)) for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def close(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    ours = np.moveaxis(ours, -1, 1) if ours.ndim == 4 else ours
    assert np.abs(ours - theirs).max() < 1e-5 * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("name", UNETS)
def test_a_folder_of_a_unet_that_diffusers_wrote(name, tmp_path):
    network = randomised(diffusers.UNet2DConditionModel(**UNETS[name]))
    network.save_pretrained(tmp_path)
    model = run_lib.load(checkpoint=tmp_path)
    x, labels = drawn("input.x", (2, 4, 4, 4)), np.array([981.0, 20.0], np.float32)
    context = drawn("input.context", (2, 3, network.config.cross_attention_dim))
    classes = np.array([3.0, 1.0], np.float32) if name == "timestep" else None
    given = {} if name == "plain" else {"context": jnp.asarray(context)}
    given |= {} if classes is None else {"classes": jnp.asarray(classes)}
    run = jax.jit(model.denoiser.network, compiler_options=FAST_COMPILE)
    ours = run(model.denoiser.params, jnp.asarray(np.moveaxis(x, 1, -1)), jnp.asarray(labels), **given)
    tensors = [torch.from_numpy(value) for value in (x, labels, context)]
    theirs = network(*tensors, class_labels=None if classes is None else torch.from_numpy(classes)).sample
    close(ours, theirs)


@pytest.mark.parametrize("half", [False, True])
def test_a_pipeline_that_diffusers_wrote(half, tmp_path):
    parts = {case: randomised(create(*CASES[case])) for case in ("sd2", "kl", "text")}
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}))
    (tmp_path / "tokens" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokens")
    pipeline = diffusers.StableDiffusionPipeline(
        unet=parts["sd2"],
        vae=parts["kl"],
        text_encoder=parts["text"],
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path / "pipeline"
    (pipeline.to(torch.float16) if half else pipeline).save_pretrained(folder)
    stored = checkpoints.read(folder)
    model = run_lib.load(checkpoint=folder)
    codec, params = latent_parts.load_codec(stored, model.config)
    text, text_params = latent_parts.load_text_encoder(stored, model.config)
    for network in parts.values():
        network.float()
    z = drawn("input.z", (1, 4, 4, 4))
    images = codec.apply({"params": params}, jnp.asarray(np.moveaxis(z, 1, -1)), method="decode")
    close(images, parts["kl"].decode(torch.from_numpy(z)).sample)
    ids = np.array([[38, 4, 39, 39, 39, 39, 39]])
    theirs = parts["text"](torch.from_numpy(ids))
    ours = text.apply({"params": text_params}, jnp.asarray(ids))
    close(ours.hidden, theirs.last_hidden_state)
    close(ours.projected, theirs.text_embeds)


def test_a_clip_folder_that_transformers_wrote(tmp_path):
    texts, images = ({**CASES[case][1]} for case in ("text", "image"))
    config = transformers.CLIPConfig(text_config=texts, vision_config=images, projection_dim=6)
    network = randomised(transformers.CLIPModel(config))
    network.save_pretrained(tmp_path)
    text, text_params, image, image_params = latent_parts.load_clip(tmp_path)
    ids, pixels = np.array([[38, 4, 39, 39, 39, 39, 39]]), drawn("input.image", (2, 3, 8, 8))
    theirs = network(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels))
    ours = text.apply({"params": text_params}, jnp.asarray(ids)).projected
    close(ours / np.linalg.norm(ours, axis=-1, keepdims=True), theirs.text_embeds)
    ours = image.apply({"params": image_params}, jnp.asarray(np.moveaxis(pixels, 1, -1))).projected
    close(ours / np.linalg.norm(ours, axis=-1, keepdims=True), theirs.image_embeds)


def same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name].reshape(tensor.shape), tensor.numpy())


def test_our_table_of_names_is_that_of_diffusers(tmp_path):
    """Theirs is written for Stable Diffusion's blocks: a network with their numbers, at a small width."""
    from diffusers.loaders import single_file_utils

    kind, config = "UNet2DConditionModel", dict(block_out_channels=[8, 16, 16, 16], norm_num_groups=4)
    config |= dict(attention_head_dim=2, cross_attention_dim=6, layers_per_block=2)
    network = create(kind, config)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    cases()["whole"] = dict(
        config=config
        | dict(
            up_block_types=list(network.config.up_block_types), down_block_types=list(network.config.down_block_types)
        ),
        shapes=shapes,
    )
    old = compvis_unet("whole")
    state = {f"model.diffusion_model.{name}": torch.from_numpy(tensor) for name, tensor in old.items()}
    same(compvis_names.unet_names(old), single_file_utils.convert_ldm_unet_checkpoint(state, dict(network.config)))
    first_stage = {name: t for name, t in compvis_codec("kl_plain").items() if not name.startswith("loss")}
    state = {f"first_stage_model.{name}": torch.from_numpy(tensor) for name, tensor in first_stage.items()}
    theirs = single_file_utils.convert_ldm_vae_checkpoint(state, CASES["kl_plain"][1])
    same(latent_names.part_names(Part(first_stage, None, tmp_path), "vae"), theirs)
    text = open_clip("text_gelu")
    state = {f"cond_stage_model.model.{name}": torch.from_numpy(tensor) for name, tensor in text.items()}
    theirs = single_file_utils.convert_open_clip_checkpoint(create(*CASES["text_gelu"]), state)
    theirs = latent_names.text_names({k: v for k, v in theirs.items() if k.startswith("text_model")})
    ours = latent_names.part_names(Part({f"model.{k}": v for k, v in text.items()}, None, tmp_path), "text_encoder")
    same(ours, {name: tensor for name, tensor in theirs.items() if "layers.2." not in name})


class Callback:
    """An object of a program that the reader does not have."""

    def __init__(self):
        self.best, self.folder = torch.tensor(0.5), os.getcwd()


def test_a_file_that_torch_wrote_with_objects_of_its_own(tmp_path):
    unet = {name: torch.from_numpy(tensor) for name, tensor in compvis_unet("sd1").items()}
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}
    whole = {"state_dict": state, "callbacks": {Callback: Callback()}, "global_step": 12, "loops": [Callback()]}
    torch.save(whole, tmp_path / "model.ckpt")
    found = checkpoints.read(tmp_path / "model.ckpt")
    assert found.step == 12 and any(name.endswith("Callback") for name in found.extra["placeholders"])
    ours = names.network_names(found, ["conv_in/kernel"])
    expected = names.flax_names_dotted(tensors_of("sd1"), ["conv_in/kernel"])
    for name, tensor in expected.items():
        np.testing.assert_array_equal(ours[name], tensor)
