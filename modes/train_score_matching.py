"""config.training.method=score_matching: a teacher from images, by denoising score matching."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders.class_training import create_tell
from builders.draw import sample, to_pixels
from builders.latent import is_latent
from builders.latent_data import open_latents
from builders.model import Model, create_denoiser, create_network, load
from builders.training import announce, create_batches, run_loop
from checkpoints import native
from data.pipeline import to_model_range
from reports.grids import image_grid
from reports.images import write_png
from training import score_matching
from training.state import TrainState


def train(config: ConfigDict, workdir: Path, checkpoint: str = "") -> None:
    """Trains config.model on config.data.source; a network of one's own (config.model.factory) from its own parameters.

    A latent model learns the latents of its codec (`builders.latent_data.open_latents`), which its file then holds too.

    `checkpoint`: goes on from these weights with fresh optimiser moments; a state saved in the workdir wins.
    """
    if config.model.name == "analytic":
        raise ValueError("config.model.name='analytic' is exact already: it has no parameters to train.")
    start = load(config, checkpoint) if checkpoint or config.model.factory else None
    if start is not None:
        config = start.config
    training = config.training
    matching = score_matching.ScoreMatching(
        weighting=training.weighting,
        noise_levels=training.noise_levels,
        lognormal_mean=training.lognormal_mean,
        lognormal_std=training.lognormal_std,
        lognormal_share=training.lognormal_share,
        reduce_mean=training.reduce_mean,
        sigma_data=config.model.sigma_data,
        centered=config.data.centered,
        end_time=1e-5,
    )

    def in_range(images: jax.Array, keys: jax.Array) -> jax.Array:
        return to_model_range(images, config.data.centered)

    draw: Callable[[jax.Array, jax.Array], jax.Array] = in_range
    if is_latent(config):
        latents = open_latents(config, workdir, checkpoint)
        config, batches, draw = latents.config, latents.batches, latents.draw
        codec, parts = latents.codec, latents.parts
    else:
        batches, codec, parts = create_batches(config), None, None
    if start is not None:
        template = start.denoiser
    else:
        shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
        initialise = jax.jit(create_network(config).init)
        params = initialise(jax.random.key(config.seed), jnp.zeros((1, *shape)), jnp.ones((1,)))["params"]
        template = create_denoiser(config, params)
    params, tell = template.params, create_tell(config, batches.labels)

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        denoiser = tell(dataclasses.replace(template, params=params), batch, keys)
        return score_matching.loss(matching, denoiser, draw(batch["image"], keys), keys)

    announce(config, params, batches)

    def snapshot(state: TrainState) -> None:
        """The averaged weights as a file of their own, and a grid of samples drawn with them."""
        path = workdir / "checkpoints" / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        averaged = jax.tree.map(np.asarray, state.ema_params)
        native.write(path, averaged, json.loads(config.to_json_best_effort()), {"step": int(state.step)}, True, parts)
        denoiser = dataclasses.replace(template, params=jax.tree.map(jnp.asarray, averaged))
        model = Model(denoiser, config, codec=codec)
        # A plain sampler, so that what is seen is the network.
        drawn = sample(model, {"method": "pc", "num_steps": 50, "corrector": "none"}, range(16))
        write_png(workdir / "samples" / f"step_{int(state.step)}.png", image_grid(to_pixels(model, drawn.images)))

    (workdir / "samples").mkdir(parents=True, exist_ok=True)
    run_loop(config, loss, params, batches, workdir, snapshot)
