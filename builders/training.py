"""From config.training, config.optim and config.data to what every trainer needs: images, optimiser, the loop."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders.latent import image_shape
from builders.own_model import load_function
from builders.processes import is_first
from data import create_source
from data.pipeline import Batches, OnDemandImages, open_images
from data.sources import Source, Without
from reports.progress import Progress
from training import loop
from training.state import TrainState, create_state

JUDGED = 512  # images that a trainer measures itself on, at most


def data_source(config: ConfigDict) -> str | Source:
    """What `data.create_source` opens: config.data.source, or the data set that config.data.factory makes."""
    if config.data.factory:
        made = load_function(config.data.factory, "config.data.factory")()
        if not isinstance(made, Source):
            raise ValueError(
                f"config.data.factory={config.data.factory!r} returned {type(made).__name__}; it must return an object "
                'with `name`, len() and [i] -> {"image": uint8 [h, w, c], "label": int}.'
            )
        return made
    if not config.data.source:
        raise ValueError("config.data.source is empty: name a folder, zip, npz or tfds folder of images.")
    return config.data.source


def create_batches(config: ConfigDict) -> Batches:
    """Batches of the training images of config.data, held-out ones left out, with labels where the source has them.

    They are images for a latent model too, of the size that its codec takes.
    """
    data = config.data
    if data.range:
        raise ValueError(
            f"Images are trained on in [0, 1] or [-1, 1], and the network's range is {tuple(data.range)}: scale inside "
            "its function, and say data_range=(0, 1) or (-1, 1)."
        )
    source = create_source(data_source(config), data.split)
    if data.holdout:
        source = Without(source, data.holdout)
    size, _, channels = image_shape(config)
    images, labels = open_images(source, size, channels)
    return Batches(images, config.training.batch_size, config.seed, data.random_flip, labels)


def judged_images(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, h, w, c] and labels [n] kept out of training, or the first where config.data.holdout is 0."""
    source = create_source(data_source(config), config.data.split)
    indices = np.arange(0, len(source), config.data.holdout or 1)[:JUDGED]
    size, _, channels = image_shape(config)
    return OnDemandImages(source, size, channels).fetch(indices)


def loop_settings(config: ConfigDict) -> loop.LoopSettings:
    return loop.LoopSettings(
        **{field.name: config.training[field.name] for field in dataclasses.fields(loop.LoopSettings)}
    )


def announce(config: ConfigDict, params: Any, batches: Batches, what: str = "", of: str = "") -> None:
    """Logs what is to be trained ("a codec of ") on which images (" of 5 classes")."""
    settings = loop_settings(config)
    logging.info(
        "Training %s%.2f M parameters on %d images%s (%s), %d updates of %d images.",
        what,
        sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
        len(batches.images),
        of,
        config.data.source,
        settings.num_steps,
        settings.batch_size,
    )


def run_loop(
    config: ConfigDict,
    loss: loop.LossFn,
    params: Any,
    batches: loop.BatchSource,
    folder: Path,
    snapshot: Callable[[TrainState], None],
    what: str = "training",
) -> TrainState:
    """The training loop from `params`, or from the state saved in `folder`, with a progress bar.

    `snapshot(state)` is called by the first process every config.training.sample_every updates and at the end.
    """
    settings = loop_settings(config)
    optimizer = loop.create_optimizer(num_steps=settings.num_steps, **config.optim.to_dict())
    with Progress(settings.num_steps, what, "update") as progress, _curve(config, folder) as curve:
        last = [0]

        def on_progress(step: int, loss: float) -> None:
            progress.update(step - last[0])
            last[0] = step
            curve(step, loss)

        start = create_state(params, optimizer)
        state = loop.train(loss, optimizer, settings, start, batches, config.seed, folder, snapshot, on_progress)
    jax.block_until_ready(state)
    if is_first():
        snapshot(state)
    return state


@contextlib.contextmanager
def _curve(config: ConfigDict, folder: Path) -> Iterator[Callable[[int, float], None]]:
    """What draws the loss in TensorBoard, if config.training.tensorboard asks for it."""
    if not (config.training.tensorboard and is_first()):
        yield lambda step, loss: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError('config.training.tensorboard=True needs tensorboardX: pip install ".[tb]".') from error
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield lambda step, loss: writer.add_scalar("loss", loss, step)
