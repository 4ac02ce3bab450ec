"""config.training.method=autoencoder: the codec of a latent model, from images."""

import copy
import json
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import autoencoder as builder
from builders.training import announce, create_batches, judged_images, run_loop
from metrics.paired import psnr
from reports.grids import comparison_grid
from reports.images import to_uint8, write_png
from training.state import TrainState

QUALITY_FILE = "quality.jsonl"
SHOWN = 8  # images beside what comes back of them


def train(config: ConfigDict, workdir: Path, checkpoint: str = "") -> None:
    """Trains the codec of config.latent on config.data.source.

    Writes W/autoencoder/autoencoder.safetensors, where the training of a network on its latents looks for it, and at
    every snapshot a picture and a line of W/autoencoder/quality.jsonl: PSNR and nats of images that config.data.holdout
    keeps out of training (of training images where it keeps none).

    `checkpoint`: goes on from this codec with fresh optimiser moments; a state saved in the workdir wins.
    """
    config = copy.deepcopy(config)
    module, params = builder.create_codec(config, checkpoint)
    folder = workdir / builder.FILE.parent
    batches, loss = create_batches(config), builder.create_loss(config, module)
    images = judged_images(config)[0]
    announce(config, params, batches, "a codec of ")

    def snapshot(state: TrainState) -> None:
        """The averaged weights as a file of their own, what they make of images, and a line of figures."""
        averaged, step = jax.tree.map(np.asarray, state.ema_params), int(state.step)
        found, nats = builder.reconstructions(module, averaged, images)
        back = to_uint8((found + 1) / 2)
        decibels = float(psnr(back, images).mean())
        facts = {"step": step, "psnr": round(decibels, 3), "nats": round(float(nats.mean()), 1), "judged": len(images)}
        builder.save(workdir / builder.FILE, config, averaged, facts)
        with (folder / QUALITY_FILE).open("a") as file:
            file.write(json.dumps(facts) + "\n")
        rows = {"given": images[:SHOWN], "through the codec": back[:SHOWN]}
        caption = f"update {step}: PSNR {decibels:.2f} dB, {facts['nats']:.0f} nats an image, of {len(images)} images"
        write_png(folder / f"step_{step}.png", comparison_grid(rows, caption=caption))
        logging.info("%s", caption)

    run_loop(config, loss, params, batches, folder, snapshot, "training a codec")
