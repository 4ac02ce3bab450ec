"""Published guided sampling end to end: ADM's U-Net, its classifier and every splitting, to the published images."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import golden_folder

import checkpoints
import models
from checkpoints import fitting, names
from models.adm import ADM
from models.classifier import EncoderUNet
from sampling import base, guidance, splitting, thresholding, time_grids
from sampling.base import TimeGrid

LADDER = time_grids.ddpm_noise_scales(np.linspace(1e-4, 0.02, 1000))
UNET = ADM(
    nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(4,), num_heads=4, num_head_channels=16, num_classes=10
)
CLASSIFIER = EncoderUNet(
    nf=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), num_head_channels=16, num_classes=10
)


def index(s, like):
    """The base time of a noise scale of the ladder, one an image."""
    return jnp.broadcast_to(jnp.argmin(jnp.abs(jnp.asarray(LADDER, s.dtype) - s)).astype(s.dtype), like.shape[:1])


class Eps(NamedTuple):
    params: Any
    classes: Any

    def __call__(self, y, s):
        out = UNET.apply({"params": self.params}, y / jnp.sqrt(1 + s**2), index(s, y), self.classes)
        return y - s * out[..., :3]


class LogLabel(NamedTuple):
    params: Any
    classes: Any
    scale: Any

    def __call__(self, y, s):
        def log_prob(y):
            logits = CLASSIFIER.apply({"params": self.params}, y / jnp.sqrt(1 + s**2), index(s, y))
            return self.scale * jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(len(y)), self.classes])

        return jax.grad(log_prob)(y)


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
    denoiser = thresholding.thresholded(Eps(parameters(UNET, "adm_unet_cond.pt"), classes), "static", centered=True)
    guide = LogLabel(parameters(CLASSIFIER, "adm_classifier_a.pt"), classes, jnp.float32(golden["scale"]))
    s = time_grids.with_zero(LADDER[golden["timestep_map"]][::-1])
    start = jnp.asarray(np.sqrt(1 + s[0] ** 2) * golden["noise"], jnp.float32)
    for method, final in zip(golden["methods"], golden["final"], strict=True):
        settings = splitting.settings(str(method), 10, "official")
        plan = splitting.plan(settings, TimeGrid(s, s), guidance.UNIT)
        operands = splitting.operands(settings, denoiser, guide, guidance.UNIT, None)
        end, _ = base.integrate(plan.step, operands, plan.init(start), plan.rows, 30)
        np.testing.assert_allclose(end.y, final, atol=5e-3, err_msg=method)
