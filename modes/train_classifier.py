"""config.training.method=classifier: a classifier of noisy images, for guidance of the model of the same config."""

import copy
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders.classifier import create_classifier, create_network, read_classifier
from builders.model import create_sde
from builders.training import announce, create_batches, judged_images, run_loop
from checkpoints import native
from data.pipeline import to_model_range
from models.noisy_classifier import NoisyClassifier
from training import classifier as classifier_training
from training.score_matching import ScoreMatching
from training.state import TrainState

ACCURACY_FILE = "accuracy.jsonl"
SCALES = (0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)  # noise scales at which it is measured, in units of [-1, 1] data


def train(config: ConfigDict, workdir: Path, checkpoint: str = "") -> None:
    """Trains config.classifier on the class folders of config.data.source.

    Writes W/checkpoints/classifier.safetensors and, at every snapshot, a line of W/accuracy.jsonl: the accuracy at each
    noise scale on images that config.data.holdout keeps out of training (on training images where it keeps none).

    `checkpoint`: goes on from this classifier with fresh optimiser moments; a state saved in the workdir wins.
    """
    config = copy.deepcopy(config)
    training, centered, sde = config.training, config.data.centered, create_sde(config)
    noise = ScoreMatching(
        noise_levels=training.noise_levels,
        lognormal_mean=training.lognormal_mean,
        lognormal_std=training.lognormal_std,
        lognormal_share=training.lognormal_share,
    )
    batches = create_batches(config)
    images, labels = judged_images(config)
    if not config.classifier.num_classes:
        found = labels if batches.labels is None else batches.labels
        config.classifier.num_classes = int(found.max()) + 1
    network = create_network(config.classifier)
    if checkpoint:
        params = read_classifier(checkpoint, "--checkpoint")[1]
    else:
        x = jnp.zeros((1, config.data.image_size, config.data.image_size, config.data.num_channels))
        params = jax.jit(network.init)(jax.random.key(config.seed), x, jnp.ones((1,)))["params"]

    def of(params: Any) -> NoisyClassifier:
        return create_classifier(config.classifier, params, sde, centered)

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        x0 = to_model_range(batch["image"], centered)
        return classifier_training.loss(noise, of(params), x0, batch["label"], keys)

    announce(config, params, batches, "a classifier of ", f" of {config.classifier.num_classes} classes")

    def snapshot(state: TrainState) -> None:
        """The averaged weights as a file of their own, and a line of accuracies."""
        path = workdir / "checkpoints" / "classifier.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        averaged = jax.tree.map(np.asarray, state.ema_params)
        shares = classifier_training.accuracies(
            of(averaged), to_model_range(images, centered), labels, [s if centered else s / 2 for s in SCALES]
        )
        accuracy = {f"{s:g}": round(share, 4) for s, share in zip(SCALES, shares, strict=True)}
        facts = {"step": int(state.step), "classifier": accuracy, "judged": len(images)}
        native.write(path, averaged, json.loads(config.to_json_best_effort()), facts, half=True)
        with (workdir / ACCURACY_FILE).open("a") as file:
            file.write(json.dumps({"step": int(state.step), "n": len(images), "accuracy": accuracy}) + "\n")
        logging.info("Accuracy by noise scale on %d images at update %d: %s", len(images), state.step, accuracy)

    run_loop(config, loss, params, batches, workdir, snapshot, "training a classifier")
