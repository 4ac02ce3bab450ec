import json

import checkpoint_writers as writers
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_writers import tensor

import checkpoints

KERNEL = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3)
CONFIG = {"_class_name": "UNet2DModel", "sample_size": 16, "block_out_channels": [2]}


def make(folder, weights="safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if weights == "safetensors":
        safetensors.numpy.save_file({"conv_in.weight": KERNEL}, folder / "diffusion_pytorch_model.safetensors")
    elif weights == "bin":
        writers.write_zip(
            folder / "diffusion_pytorch_model.bin", {"conv_in.weight": tensor(KERNEL, "0")}, {"0": KERNEL}
        )


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_a_model_folder_gives_its_tensors_and_config(tmp_path, weights):
    make(tmp_path, weights)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler", "beta_end": 0.02}')
    checkpoint = checkpoints.read(tmp_path)
    assert checkpoint.format == "diffusers" and checkpoint.config == CONFIG
    assert checkpoint.extra["scheduler"]["beta_end"] == 0.02
    assert list(checkpoint.raw) == ["conv_in.weight"] and checkpoint.ema is None
    np.testing.assert_array_equal(checkpoint.raw["conv_in.weight"], KERNEL, strict=True)


def test_a_pipeline_folder_is_read_through_its_unet(tmp_path):
    make(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "ScoreSdeVeScheduler"}')
    checkpoint = checkpoints.read(tmp_path)
    assert checkpoint.config == CONFIG and checkpoint.extra["scheduler"]["_class_name"] == "ScoreSdeVeScheduler"


def test_the_hash_of_a_folder_follows_its_weights(tmp_path):
    make(tmp_path)
    before = checkpoints.read(tmp_path).sha256()
    (tmp_path / "README.md").write_text("changes nothing")
    assert checkpoints.read(tmp_path).sha256() == before
    safetensors.numpy.save_file({"conv_in.weight": KERNEL + 1}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert checkpoints.read(tmp_path).sha256() != before


def test_missing_and_broken_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder without config.json"):
        checkpoints.read(tmp_path)
    make(tmp_path, weights="none")
    with pytest.raises(FileNotFoundError, match=r"has none of diffusion_pytorch_model.safetensors.*\['config.json'\]"):
        checkpoints.read(tmp_path)
    make(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        checkpoints.read(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json holds a list"):
        checkpoints.read(tmp_path)
