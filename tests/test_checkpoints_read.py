import shutil

import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
from checkpoints import native


@pytest.mark.parametrize(
    "source, expected",
    [
        ("pds/vp_ddpmpp_continuous_tiny.pth", "score_sde_torch"),
        ("pds/flax_vp_ddpmpp_continuous_tiny.msgpack", "score_sde_flax"),
        ("checkpoints/pt_sample_zip.pt", "torch_state_dict"),
        ("checkpoints/pt_sample_legacy.pt", "torch_state_dict"),
    ],
)
def test_the_format_is_told_by_content_not_by_name(tmp_path, source, expected):
    for name in ("a.pkl", "b.safetensors", "c"):
        area, _, file = source.partition("/")
        shutil.copy(golden_folder(area) / file, tmp_path / name)
        assert checkpoints.read(str(tmp_path / name)).format == expected


def test_our_own_format_is_told_by_content_too(tmp_path):
    native.write(tmp_path / "a.pth", {"b": np.ones(2, np.float32)}, {})
    assert checkpoints.read(tmp_path / "a.pth").format == "native"


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>", b"cos\nsystem\n(S'true'\ntR.", b"\x89PNG\r\n\x1a\n....", b"P"]
)
def test_anything_else_is_refused_with_its_first_bytes(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match="w.pth begins with .* no supported format"):
        checkpoints.read(tmp_path / "w.pth")


def test_an_empty_or_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*w.pth.*--checkpoint"):
        checkpoints.read(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="w.pth is empty"):
        checkpoints.read(tmp_path / "w.pth")
