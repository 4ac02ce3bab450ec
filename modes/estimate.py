"""What a run will take, said before anything is compiled: memory, time, and a cheaper setting."""

import jax
import jax.numpy as jnp

from builders.classifier_free import calls_per_evaluation
from builders.conditions import Take
from builders.draw import group_size
from builders.model import Model
from builders.samplers import create_denoiser
from reports.cost import EFFICIENCY, cost, matmul_speed
from reports.progress import format_seconds
from sampling.base import Sampler

FEW = 10  # calls of the setting that is offered instead
GRADIENT = 3  # times the arithmetic of a call


def estimate(model: Model, sampler: Sampler, count: int) -> str:
    """ "about 24 MB and 12 s, compilation apart; cheaper: --method=unipc --steps=10, about 1.2 s".

    Memory is that of the arrays of one network call on one device, its parameters included (of two calls at once under
    classifier-free guidance); time follows from the arithmetic of all calls and the speed of a matrix product, which is
    measured here. Both are good to a factor of 2. A latent model's decoder is reckoned apart.
    """
    config = model.config
    devices, size = group_size(config, count)
    per_call = size // len(devices) * config.model.num_times  # a student of DSNO sees every image so many times
    x = jax.ShapeDtypeStruct((per_call, *model.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((per_call,), jnp.float32)
    denoiser, at_once = create_denoiser(model, config, Take([0], per_call)), calls_per_evaluation(config)
    one = cost(lambda denoiser, x, t: denoiser.output_at(x, t), denoiser, x, t)  # an evaluation: 2 calls under guidance
    speed = EFFICIENCY * matmul_speed() * (len(devices) if devices[0].platform != "cpu" else 1)
    groups = -(-count // size)

    def seconds(calls: int) -> float:
        return groups * len(devices) * one.flops * calls / at_once / speed

    decoding = _decoding(model, count, speed) if model.codec is not None else ""
    if not sampler.nfe:  # an adaptive solver takes as many calls as it needs
        return f"about {one.memory / 1e6:.0f} MB a device{decoding}"
    calls = sampler.nfe + (GRADIENT - 1) * sampler.gradient_calls
    said = f"about {one.memory / 1e6:.0f} MB a device and {format_seconds(seconds(calls))}, compilation apart{decoding}"
    if sampler.nfe <= 2 * FEW * at_once or config.guidance.kind != "none":
        return said
    return f"{said}; cheaper: --method=unipc --steps={FEW}, about {format_seconds(seconds(FEW * at_once))}"


def training(model: Model, calls: int, gradients: int) -> str:
    """ "about 12 min here" for so many network calls and so many with a gradient, of one image each; as `estimate`."""
    x, t = jax.ShapeDtypeStruct((1, *model.shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    denoiser = create_denoiser(model, model.config, Take([0], 1))
    flops = cost(lambda denoiser, x, t: denoiser.output_at(x, t), denoiser, x, t).flops
    return f"about {format_seconds((calls + GRADIENT * gradients) * flops / (EFFICIENCY * matmul_speed()))} here"


def _decoding(model: Model, count: int, speed: float) -> str:
    """ "; decoding about 900 MB and 40 s, 4 tiles an image": one call of the decoder at a time, after the sampler."""
    codec, shape = model.codec, model.shape
    assert codec is not None
    latents = jax.ShapeDtypeStruct((1, *codec.decoded_at_once(shape), shape[2]), jnp.float32)
    one, tiles = cost(lambda codec, latents: codec.to_images(latents), codec, latents), codec.tiles(shape)
    cut = f", {tiles} tiles an image" if tiles > 1 else ""
    return f"; decoding about {one.memory / 1e6:.0f} MB and {format_seconds(count * tiles * one.flops / speed)}{cut}"
