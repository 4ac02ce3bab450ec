"""config.model.name="analytic": the closed-form model, from a folder of photographs or from synthesised ones."""

import numpy as np
from ml_collections import ConfigDict

import sde_lib
from data import create_source
from data.pipeline import load_images
from masks import profiles
from models.analytic import Analytic, Mixture, mixture
from models.denoiser import Denoiser


def create_analytic(config: ConfigDict, sde: sde_lib.GaussianSDE) -> Denoiser:
    """The exact denoiser of config.model.components images: those of config.data.source, or random natural spectra.

    The residual has the spectrum of photographs, config.model.residual times as strong (in amplitude). One component
    is a grey image, which makes the model Gaussian.
    """
    data, model = config.data, config.model
    shape = (data.image_size, data.image_size, data.num_channels)
    if model.components < 1 or not model.residual > 0:
        raise ValueError(
            f"config.model.components={model.components} must be at least 1 and config.model.residual="
            f"{model.residual:g} positive."
        )
    natural = natural_variance(*shape)
    if model.components == 1:
        images = np.full((1, *shape), 0.5)
    elif data.source:
        source = create_source(data.source, data.split)
        images = load_images(source, data.image_size, data.num_channels)[0][: model.components] / 255.0
    else:
        images = natural_fields(model.components, natural, config.seed)
    unit = 2.0 if data.centered else 1.0  # of the data range in units of [0, 1]
    images = images * unit - (unit - 1)
    params: Mixture = mixture(images, natural * (unit * model.residual) ** 2)
    return Denoiser(params, Analytic(sde), sde, "x0", "t")


def natural_variance(height: int, width: int, channels: int) -> np.ndarray:
    """Variance of photographs in [0, 1] at each frequency of the orthonormal transform, [h, w, c].

    The zero frequency, whose shipped value is a mean power, takes that of the first ring.
    """
    profile = profiles.natural_profile()
    grey = profile.power.mean(axis=1, keepdims=True)
    log_power = profiles.draw(profiles.RadialProfile(grey), height, width, channels)
    variance = np.expm1(log_power) / (height * width)
    variance[0, 0] = variance[0, 1]
    return variance


def natural_fields(count: int, variance: np.ndarray, seed: int) -> np.ndarray:
    """Random images [n, h, w, c] in [0, 1] with the given spectrum, clipped; channels agree for the most part."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, *variance.shape))
    common = generator.normal(size=(count, *variance.shape[:2], 1))
    mixed = np.fft.fft2(0.95 * common + np.sqrt(1 - 0.95**2) * noise, axes=(1, 2), norm="ortho")
    fields = np.fft.ifft2(np.sqrt(variance)[None] * mixed, axes=(1, 2), norm="ortho").real
    return np.clip(0.5 + fields, 0, 1)
