"""The PyTorch network that ours is timed against is the published one: recorded weights in, recorded outputs out."""

import json

import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
from configs import score_sde

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
GOLDENS = golden_folder("pds")


def peer(name):
    from benchmarks.peers.ncsnpp_torch import NCSNpp

    config = score_sde.translate(json.loads((GOLDENS / f"{name}.json").read_text())["config"])
    return NCSNpp(config.model.to_dict(), config.data.to_dict()).eval()


@pytest.mark.parametrize("name", ["ve_cifar10_ncsnpp_continuous_tiny", "ve_bedroom_tiny", "vp_ddpmpp_continuous_tiny"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_peer_equals_the_published_network(name, channels_last):
    network = peer(name).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    weights = checkpoints.read(GOLDENS / f"{name}.pth").weights(ema=True)
    weights = {key.removeprefix("module."): torch.from_numpy(np.array(value)) for key, value in weights.items()}
    network.load_state_dict({key: value for key, value in weights.items() if key != "sigmas"})
    with np.load(GOLDENS / f"{name}.npz") as golden, torch.inference_mode():
        out = network(torch.from_numpy(golden["x"]), torch.from_numpy(golden["labels"]).float()).numpy()
        difference = np.abs(out - golden["raw_ema"]).max((1, 2, 3)) / np.abs(golden["raw_ema"]).max((1, 2, 3))
    assert difference.max() < 1e-4


def test_a_config_that_the_peer_lacks_is_refused():
    with pytest.raises(ValueError, match="has no network with {'resblock_type': 'ddpm'"):
        peer("ve_ncsnpp_catcombine_ddpmblock_tiny")
    with pytest.raises(ValueError, match="'scale_by_sigma': True"):
        peer("ve_cifar10_ncsnpp_discrete_tiny")
