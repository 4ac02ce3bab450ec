"""The README commands of the published split-diffusion program, on a tiny pair of its container and architecture.

Theirs: `--model_name u256 --method stsp4 --cond_name cond1 --timestep_rp 20 --num_samples 3` with a U-Net and a
classifier as .pt files. Ours: `--config FILE:class_conditional --checkpoint U --config.guidance.classifier C --method
stsp4 --config.sampling.grid 20 --num_samples 3`. The files are tests/goldens/adm.
"""

import numpy as np
import pytest
from golden_files import golden_folder
from test_run_adm import CLASSIFIER, WEIGHTS, run, tiny_config

# --method, compat -> network and gradient calls of four levels; official PLMS spends one more of each.
COMMANDS = {
    ("ddim", "corrected"): (4, 4),
    ("plms4", "corrected"): (4, 4),
    ("plms4", "official"): (5, 5),
    ("ltsp4", "corrected"): (4, 4),
    ("ltsp4", "official"): (4, 4),
    ("stsp4", "corrected"): (4, 8),
    ("stsp4", "official"): (4, 8),
}


QUICK = (("stsp4", "official"),)  # the others take the same ways through the program


@pytest.mark.parametrize(
    ("method", "compat"), [each if each in QUICK else pytest.param(*each, marks=pytest.mark.slow) for each in COMMANDS]
)
def test_a_published_command_has_its_equivalent(method, compat, tmp_path):
    config = tiny_config("class_conditional")
    settings = {
        "guidance.classifier": str(golden_folder("adm") / CLASSIFIER),
        "guidance.compat": compat,
        "guidance.scale": 10.0,
        "sampling.method": method,
        "sampling.grid": "4",  # --timestep_rp 4
        "sampling.num_steps": 0,
        "sampling.labels": "3,7",
        "eval.num_samples": 3,
    }
    images, record = run(tmp_path, config, golden_folder("adm") / WEIGHTS, **settings)
    assert (record["calls"], record["gradient_calls"]) == COMMANDS[method, compat]
    written = {path.name for path in (tmp_path / "out" / "eval").iterdir()}
    promised = {"image_0.png", "image_1.png", "image_2.png", "samples_0.npz", "grid.png", "run.json"}
    assert promised <= written and len(list((tmp_path / "out" / "eval").glob("image_*.png"))) == 3
    with np.load(tmp_path / "out" / "eval" / "samples_0.npz") as samples:
        np.testing.assert_array_equal(samples["arr_0"], images)
    assert not np.array_equal(images[0], images[1])
