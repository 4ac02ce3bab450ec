"""CompVis' file: its parts and average, foreign objects as placeholders, one table of names for any network."""

import checkpoint_writers as writers
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_writers import Build, Call, Name
from latent_cases import compvis_codec, compvis_unet, open_clip, tensors_of

import checkpoints
from checkpoints import compvis_names, latent_names
from checkpoints.base import Part
from checkpoints.inspect import describe

UNET = {"input_blocks.0.0.weight": np.ones((2, 4, 3, 3), np.float32), "out.2.bias": np.arange(4, dtype=np.float32)}


def state_dict(unet=UNET, **others):
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}
    whole |= {f"model_ema.diffusion_model{name.replace('.', '')}": 2 * tensor for name, tensor in unet.items()}
    whole |= {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int64(5)}
    whole |= {"first_stage_model.encoder.conv_in.bias": np.zeros(3, np.float32)}
    whole |= {"cond_stage_model.embedding.weight": np.zeros((3, 2), np.float32)}
    return {name: np.asarray(tensor) for name, tensor in (whole | others).items()}


def save(path, state, **entries):
    """As torch.save writes it, with whatever else Lightning puts beside the weights."""
    storages = {str(i): tensor for i, tensor in enumerate(state.values())}
    named = {name: writers.tensor(tensor, str(i)) for i, (name, tensor) in enumerate(state.items())}
    writers.write_zip(path, {"state_dict": named, **entries}, storages)
    return path


def lightning():
    """Entries of published files: callbacks under their classes, objects with states, calls of what was built."""
    callback = Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    config = Build(Call(Name("omegaconf.listconfig", "ListConfig"), ()), {"_content": [1, 2]})
    partial = Call(Name("functools", "partial"), (Name("os", "system"),))
    return {
        "global_step": 470_000,
        "callbacks": {callback: {"best_model_score": None}},
        "hyper_parameters": [config, Call(partial, ("touch hacked",))],
        "optimizer_states": [],
    }


def test_the_parts_of_a_file_are_told_apart_and_the_average_gets_its_dots_back(tmp_path):
    state = state_dict(betas=np.linspace(0.1, 0.2, 3), scale_factor=np.float32(0.5))
    found = checkpoints.read(save(tmp_path / "model.ckpt", state, global_step=7))
    assert found.format == "compvis" and found.step == 7
    assert set(found.raw) == set(found.ema) == set(UNET)
    for name, tensor in UNET.items():
        np.testing.assert_array_equal(found.raw[name], tensor, strict=True)
        np.testing.assert_array_equal(found.weights()[name], 2 * tensor, strict=True)
    assert list(found.extra["parts"]["vae"].tensors) == ["encoder.conv_in.bias"]
    assert list(found.extra["parts"]["text_encoder"].tensors) == ["embedding.weight"]
    assert float(found.extra["scale_factor"]) == 0.5 and len(found.extra["betas"]) == 3


def test_inspecting_a_file_counts_its_parts_and_prints_no_tensor(tmp_path):
    state = state_dict(betas=np.linspace(0.1, 0.2, 3), scale_factor=np.float32(0.5))
    text = describe(checkpoints.read(save(tmp_path / "model.ckpt", state, **lightning())))
    assert "vae         3 in 1 tensors" in text and "text_encoder 6 in 1 tensors" in text
    assert '"betas": "3 values, 0.1 to 0.2"' in text and '"scale_factor": 0.5' in text and "os.system" in text


def test_foreign_objects_are_listed_and_never_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = checkpoints.read(save(tmp_path / "model.ckpt", state_dict(), **lightning()))
    assert set(found.raw) == set(UNET) and found.step == 470_000
    names = {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "omegaconf.listconfig.ListConfig"}
    assert set(found.extra["placeholders"]) == names | {"functools.partial", "os.system"}
    assert any("os.system" in note for note in found.notes)
    assert not (tmp_path / "hacked").exists()


def test_a_file_of_another_kind_is_as_strictly_read_as_before(tmp_path):
    with pytest.raises(ValueError, match="asks for 'pytorch_lightning"):
        checkpoints.read(save(tmp_path / "other.pt", {"a.weight": np.ones(2, np.float32)}, **lightning()))


def test_bare_tensors_and_safetensors_are_the_same_model(tmp_path):
    state = {name: tensor for name, tensor in state_dict().items() if not name.startswith("model_ema")}
    storages = {str(i): tensor for i, tensor in enumerate(state.values())}
    bare = {name: writers.tensor(tensor, str(i)) for i, (name, tensor) in enumerate(state.items())}
    writers.write_zip(tmp_path / "bare.ckpt", bare, storages)
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    for file in ("bare.ckpt", "model.safetensors"):
        found = checkpoints.read(tmp_path / file)
        assert found.format == "compvis" and found.ema is None and set(found.raw) == set(UNET)
        assert set(found.extra["parts"]) == {"vae", "text_encoder"}


@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_an_average_that_does_not_cover_the_network_is_refused(tmp_path, change):
    state = state_dict()
    key = "model_ema.diffusion_modelout2bias"
    state.pop(key) if change == "missing" else state.update({key: np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="its moving average lacks 1 tensors of the U-Net.*out.2.bias"):
        checkpoints.read(save(tmp_path / "model.ckpt", state))


def same(ours, theirs, squeeze=False):
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        mine = ours[name].reshape(tensor.shape) if squeeze else ours[name]
        np.testing.assert_array_equal(mine, tensor, strict=True)


@pytest.mark.parametrize("case", ["sd1", "sd2", "mixed"])
def test_the_blocks_of_a_unet_find_their_levels_by_their_names(case):
    renamed = compvis_unet(case)
    assert not set(renamed) & set(tensors_of(case))
    same(compvis_names.unet_names(renamed), tensors_of(case))


@pytest.mark.parametrize("case", ["kl", "vq"])
def test_a_first_stage_has_the_names_of_diffusers_and_loses_its_loss(case, tmp_path):
    same(latent_names.part_names(Part(compvis_codec(case), None, tmp_path), "vae"), tensors_of(case), squeeze=True)


def test_attention_of_old_vae_folders_has_its_present_names(tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors_of("kl").items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = tensor
    same(latent_names.part_names(Part(renamed, None, tmp_path), "vae"), tensors_of("kl"))


def test_text_encoders_are_known_in_three_spellings(tmp_path):
    expected = latent_names.text_names(tensors_of("text_gelu"))

    def read(tensors):
        return latent_names.part_names(Part(tensors, None, tmp_path), "text_encoder")

    same(read({f"transformer.text_model.{name}": tensor for name, tensor in expected.items()}), expected)
    same(read({f"model.{name}": tensor for name, tensor in open_clip("text_gelu").items()}), expected)
    table = {"embedding.weight": np.ones((3, 2), np.float32)}
    same(read(table), table)
    with pytest.raises(ValueError, match="is neither CLIP nor a table of classes"):
        read({"transformer.token_emb.weight": np.ones((3, 2), np.float32)})


def test_a_tensor_without_a_place_is_named():
    stray = compvis_unet("sd1") | {"diffusion_head.weight": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="tensor 'diffusion_head.weight' has no place in a CompVis U-Net"):
        compvis_names.unet_names(stray)
