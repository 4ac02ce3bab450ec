"""Training of a noise-conditional classifier p(label | x, t): cross-entropy on images noised as a sampler meets them.

Guidance asks for grad log p(label | x, t) at every noise scale of a run, so the network sees x_t = alpha x0 + sigma z
with t drawn as for denoising score matching. Where the noise hides the image, the least loss is the frequency of the
classes: what is learned there is to say nothing, and the gradient vanishes by itself.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Keys, Labels, PerImage
from models.noisy_classifier import NoisyClassifier
from training.score_matching import ScoreMatching, sample_time


def loss(noise: ScoreMatching, classifier: NoisyClassifier, x0: Image, labels: Labels, keys: Keys) -> PerImage:
    """-log p(label | x_t, t) of each image at one random time, [b], in nats; log(classes) is what a guess costs.

    Args:
      noise: where t is drawn from; its other settings belong to score matching.
      classifier: under training; its `params` are what gradients are taken of.
      x0: images in the data range, [b, h, w, c]; labels [b].
      keys: one key an image, so that the loss does not depend on how the batch is split.
    """
    key_t, key_z = jax.vmap(jax.random.split, out_axes=1)(keys)
    t = jax.vmap(lambda key: sample_time(noise, classifier.sde, "999t", key))(key_t)
    return -classifier(noised(classifier, x0, t, key_z), t, labels)


def noised(classifier: NoisyClassifier, x0: Image, t: PerImage, keys: Keys) -> Image:
    """alpha(t) x0 + sigma(t) z, with one key an image."""
    z = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], x0.dtype))(keys)
    alpha, sigma = (value(t)[:, None, None, None] for value in (classifier.sde.alpha, classifier.sde.sigma))
    return alpha * x0 + sigma * z


def accuracies(
    classifier: NoisyClassifier, images: np.ndarray, labels: np.ndarray, scales: Sequence[float], seed: int = 0
) -> list[float]:
    """Share of images named rightly at each noise scale s = sigma/alpha.

    images: [n, h, w, c] in the data range; image i gets the same noise at every scale and in every call.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(images)))

    @jax.jit
    def hits(classifier: NoisyClassifier, x0: Image, labels: Labels, keys: Keys, s: jax.Array) -> jax.Array:
        t = jnp.broadcast_to(classifier.sde.time(s), labels.shape)
        return jnp.argmax(classifier.logits(noised(classifier, x0, t, keys), t), axis=-1) == labels

    parts = [slice(start, start + 64) for start in range(0, len(images), 64)]

    def share(s: float) -> float:
        found = [
            hits(classifier, jnp.asarray(images[p]), jnp.asarray(labels[p]), keys[p], jnp.float32(s)) for p in parts
        ]
        return float(np.concatenate(found).mean())

    return [share(s) for s in scales]
