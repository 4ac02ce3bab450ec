"""A class-conditional network under training: which class it is told of each image."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from array_types import Keys
from builders import classifier_free
from models.denoiser import Denoiser
from training.score_matching import told_classes

Tell = Callable[[Denoiser, dict[str, jax.Array], Keys], Denoiser]


def create_tell(config: ConfigDict, labels: np.ndarray | None) -> Tell:
    """(network under training, batch, keys) -> the network told the class of each image, or at times the one for none.

    labels: of the training images [n], where they are known beforehand.

    Raises ValueError for labels that the network has no class for, and where classes are to be left out of a network
    that has none for none.
    """
    dropout = config.training.label_dropout
    count, none = classifier_free.classes(config)
    if not 0 <= dropout < 1:
        raise ValueError(f"config.training.label_dropout={dropout} must be a share of the images, from 0 to below 1.")
    if not count:
        if dropout:
            raise ValueError("config.training.label_dropout leaves classes out, and this network is told none.")
        return lambda denoiser, batch, keys: denoiser
    if dropout and none < 0:
        raise ValueError(
            f"config.training.label_dropout={dropout} needs a class that means none: config.data.null_class, with room "
            "for it in config.data.num_classes."
        )
    if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < count:
        raise ValueError(
            f"{config.data.source} has labels from {labels.min()} to {labels.max()}, the network the classes 0 to "
            f"{count - 1}: set --config.data.num_classes={labels.max() + 1}."
        )

    def tell(denoiser: Denoiser, batch: dict[str, jax.Array], keys: Keys) -> Denoiser:
        return denoiser.given(classes=told_classes(batch["label"], keys, dropout, none))

    return tell
