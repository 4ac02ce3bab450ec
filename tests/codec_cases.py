"""A very small codec and a network on its latents, of images of 8 px in two class folders."""

import jax
import numpy as np
from PIL import Image as Pillow

import models
from builders import autoencoder
from configs import base, methods


def write_pictures(folder, count=6):
    for name, brightness in (("dark", 40), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            ramp = np.linspace(0, 60, 64).reshape(8, 8, 1) * [1, 0.5, 0.2]
            Pillow.fromarray(np.uint8(brightness + index + ramp)).save(folder / name / f"{index}.png")
    return folder


def config_of(source, method=""):
    """Latents of 4 x 4 x 2; two updates."""
    config = base.get_config()
    config.data.update(source=str(source), image_size=4, num_channels=2, centered=True)
    config.latent.update(kind="kl", channels=2, block_out_channels=(2, 2), layers_per_block=1, norm_num_groups=1)
    config.latent.update(mid_attention=False, scale_factor=0.0)
    config.model.update(nf=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), scaling="edm", predicts="x0")
    config.model.update(fourier_scale=1.0, scale_by_sigma=False, sigma_data=1.0, dropout=0.0)
    methods.apply(config, method)
    config.training.update(num_steps=2, batch_size=4, log_every=1, checkpoint_every=1)
    config.sampling.update(method="unipc", num_steps=3, microbatch=4)
    return config


def write_codec(folder):
    """Random weights, in the place where training leaves a codec; returns (module, parameters as they are read)."""
    config, generator = config_of(""), np.random.default_rng(0)
    module = models.create_codec(config.latent.to_dict())
    shapes = models.codec_shapes(module)
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float16).astype(np.float32), shapes)
    autoencoder.save(folder / autoencoder.FILE, config, params, {"step": 2})
    return module, params
