"""Published guided sampling end to end: ADM's U-Net, its classifier and every splitting, to the published images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
import models
import sde_lib
from checkpoints import fitting, names
from models.adm import ADM
from models.classifier import EncoderUNet
from models.denoiser import Denoiser
from models.noisy_classifier import NoisyClassifier
from sampling import base, splitting, thresholding, time_grids
from sampling.base import TimeGrid
from sampling.guidance import Classifier, Schedule

CHAIN = sde_lib.DiscreteVPSDE()
UNET = ADM(
    nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,), num_heads=4, num_head_channels=16, num_classes=10
)
ENCODER = EncoderUNet(
    nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), num_head_channels=16, num_classes=10
)


def unet(params, x, labels, classes):
    return UNET.apply({"params": params}, x, labels, classes)


def encoder(params, x, labels):
    return ENCODER.apply({"params": params}, x, labels)


def index(s):
    return CHAIN.index(CHAIN.time(s))


def parameters(network, file):
    stored = checkpoints.read(golden_folder("adm") / file)
    expected = fitting.shapes(models.param_shapes(network, (8, 8, 3)))
    params = fitting.fit(names.network_names(stored, expected), expected, stored.path, np.float32)
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.slow
def test_adm_with_its_classifier_draws_the_published_images():
    with np.load(golden_folder("splitting") / "adm_guided.npz") as file:
        golden = {key: file[key] for key in file.files}
    classes = jnp.asarray(golden["y"])
    model = Denoiser(parameters(UNET, "adm_unet_cond.pt"), unet, CHAIN, "eps", "index", {"classes": classes})
    denoiser = thresholding.thresholded(model, "static", centered=True)
    weights = parameters(ENCODER, "adm_classifier_a.pt")
    guide = Classifier(NoisyClassifier(weights, encoder, CHAIN, True, index), classes, CHAIN)
    schedule = Schedule(float(golden["scale"]))
    ladder = time_grids.ddpm_noise_scales(CHAIN.discrete_betas())
    s = time_grids.with_zero(ladder[golden["timestep_map"]][::-1])
    start = jnp.asarray(np.sqrt(1 + s[0] ** 2) * golden["noise"], jnp.float32)
    for method, final in zip(golden["methods"], golden["final"], strict=True):
        settings = splitting.settings(str(method), 10, "official")
        plan = splitting.plan(settings, TimeGrid(s, s), schedule)
        operands = splitting.operands(settings, denoiser, guide, schedule, None)
        end, _ = base.integrate(plan.step, operands, plan.init(start), plan.rows, 30)
        np.testing.assert_allclose(end.y, final, atol=5e-3, err_msg=method)
