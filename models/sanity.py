"""Does a network denoise, and under which convention? One look at pictures with known noise, at three noise levels.

A wrong prediction type, data range, time convention or set of weights draws "only noise" or dim images without an
error. Each leaves the network a bad denoiser of a picture x0 + s n, and the right combination a good one: what is left
of the noise is measured for each combination, in units of what the best rule that looks at one pixel alone leaves,

    s^2 v/(s^2 + v),    v the variance of the pictures,

and the smallest geometric mean over the noise levels wins. Combinations that share what the network is fed share its
call, since the conversions between score, eps, x0 and v are known.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sde_lib
from array_types import Image, NoiseLabels, OtherChannels
from models import edm
from models.denoiser import TOLD, Denoiser

SCALES = (0.1, 0.4, 1.5)  # noise scales, in units of the distance from black to white
FAILED = 1.5  # a mean ratio above this does not denoise: looking at one pixel does better
GOOD = 0.7  # a mean ratio below this needs the neighbourhood of a pixel: the network is fed as it was in training
CLEAR = 0.85  # another convention is named if its ratio is below this share of the declared one
ALIKE = 1.02  # conventions within this factor of the best are alike: the one nearest to the declared is named


class Convention(NamedTuple):
    """What a network is taken for.

    `words` says it to the reader, by name: what to write for it, such as {"predicts": "--config.model.predicts=eps"}.
    """

    denoiser: Denoiser
    data_range: tuple[float, float]
    words: dict[str, str]


class Judged(NamedTuple):
    """A convention and the share of the noise's variance that it leaves in each picture, [scales, k]; inf if not
    finite.

    `ratio` is its geometric mean over the scales in units of the best single-pixel rule.
    """

    convention: Convention
    left: np.ndarray
    ratio: float

    def summary(self) -> str:
        shares = (
            f"{share:.1%} at {scale:g}" if share < 10 else f"{share:.2g} times as much at {scale:g}"
            for share, scale in zip(self.left.mean(axis=1), SCALES, strict=True)
        )
        return f"{', '.join(shares)} ({self.ratio:.2f} of the one-pixel rule)"


class Verdict(NamedTuple):
    """What the look has shown. `best` is the declared convention itself unless another is clearly better."""

    declared: Judged
    best: Judged

    @property
    def denoises(self) -> bool:
        return self.declared.ratio <= FAILED

    @property
    def right(self) -> bool:
        """The declared convention denoises, and nothing else does it clearly better."""
        return self.denoises and self.best is self.declared

    @property
    def changes(self) -> dict[str, str]:
        """What to write instead, by name; empty where nothing better was found."""
        said = self.declared.convention.words
        return {name: word for name, word in self.best.convention.words.items() if said.get(name) != word}

    def report(self) -> str:
        """The verdict in a few lines."""
        said = f"noise left, by noise scale in units of black to white: {self.declared.summary()}"
        if self.right:
            return f"It denoises as declared; {said}."
        if self.best is self.declared:
            return (
                f"WARNING: it does not denoise, and nothing else that was tried makes it; {said}. The weights may be "
                "untrained or damaged, or the process (config.sde) another one."
            )
        if self.best.ratio > CLEAR * self.declared.ratio:
            fault = "it denoises as declared, but the weight file speaks for something else"
        elif self.denoises:
            fault = "as declared it denoises worse than it could"
        else:
            fault = "as declared it does not denoise"
        better = "This is right" if self.best.ratio <= FAILED else "This comes closer"
        return (
            f"WARNING: {fault}; {said}.\n{better}: {' '.join(self.changes.values())}\n"
            f"with which the noise left is {self.best.summary()}."
        )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A network that is compiled once for all conventions around it; equal for equal networks."""

    network: Callable[..., OtherChannels]

    def __call__(self, params: Any, x: Image, labels: NoiseLabels, **conditions: jax.Array) -> OtherChannels:
        return _call(self.network, params, x, labels, conditions)


@functools.partial(jax.jit, static_argnums=0)
def _call(
    network: Callable[..., OtherChannels], params: Any, x: Image, labels: NoiseLabels, conditions: Any
) -> OtherChannels:
    return network(params, x, labels, **conditions)


def compiled(denoiser: Denoiser) -> Denoiser:
    """The same denoiser; the network alone is compiled, so that other conventions around it share it."""
    network = denoiser.network
    if isinstance(network, edm.Scaled):
        network = dataclasses.replace(network, network=Compiled(network.network))
    else:
        network = Compiled(network)
    return dataclasses.replace(denoiser, network=network)


def variations(convention: Convention, say: Callable[[str, str], str]) -> list[Convention]:
    """The convention under every prediction and every way to be told that its process has.

    A network under EDM's scalings is told and predicts what the scaling says: it comes alone.
    say: (name, value) -> what to write for "predicts" and "told".
    """
    denoiser = convention.denoiser
    choices = [(told, predicts) for told in TOLD for predicts in sde_lib.PREDICTIONS if _possible(denoiser.sde, told)]
    if isinstance(denoiser.network, edm.Scaled):
        choices = [(denoiser.told, denoiser.predicts)]
    return [
        Convention(
            dataclasses.replace(denoiser, predicts=predicts, told=told),
            convention.data_range,
            convention.words | {"predicts": say("predicts", predicts), "told": say("told", told)},
        )
        for told, predicts in choices
    ]


def _possible(sde: sde_lib.GaussianSDE, told: str) -> bool:
    if told == "fractional_level":
        return isinstance(sde, sde_lib.VPSDE)
    return told != "index" or hasattr(sde, "index")


def judge(convention: Convention, pictures: np.ndarray, outputs: dict | None = None) -> Judged:
    """How well a convention denoises `pictures` in [0, 1], [k, h, w, c]: three network calls of k images.

    outputs: what networks have said so far; conventions that feed a network the same find it there.
    """
    denoiser, (low, high) = convention.denoiser, convention.data_range
    outputs = {} if outputs is None else outputs
    x0 = jnp.asarray(low + (high - low) * pictures, jnp.float32)
    noise = jax.random.normal(jax.random.key(0), x0.shape, jnp.float32)
    variance = float(np.mean(np.var(pictures, axis=(1, 2))))
    left, ratios = [], []
    for scale in SCALES:
        s = _within(denoiser.sde, scale * (high - low))
        t = denoiser.sde.time(jnp.full(len(x0), s, jnp.float32))
        alpha, sigma = (value(t)[:, None, None, None] for value in (denoiser.sde.alpha, denoiser.sde.sigma))
        x = alpha * (x0 + s * noise)
        key = (denoiser.network, denoiser.told, denoiser.sde, convention.data_range, scale, id(denoiser.params))
        if key not in outputs:
            labels = denoiser.labels(t)
            outputs[key] = denoiser.network(denoiser.params, x, labels, **denoiser.conditions)
        error = _error(denoiser.predicts, outputs[key], x, x0, alpha, sigma) / s**2
        left.append(np.where(np.isfinite(error), error, np.inf))
        relative = (s / (high - low)) ** 2
        ratios.append(left[-1].mean() * (relative + variance) / variance)
    return Judged(convention, np.stack(left), float(np.exp(np.mean(np.log(np.maximum(ratios, 1e-12))))))


def _error(predicts: str, output: Any, x: Image, x0: Image, alpha: Any, sigma: Any) -> np.ndarray:
    """Mean squared error of the image that an output of this kind means, [k]; inf where it has too few channels."""
    channels = x.shape[-1] * (2 if predicts == "both" else 1)
    if output.shape[-1] < channels:
        return np.full(len(x), np.inf)
    estimate, _ = sde_lib.x0_and_eps(predicts, output[..., :channels], x, alpha, sigma)
    return np.asarray(jnp.mean((estimate - x0) ** 2, axis=(1, 2, 3)), np.float64)


def _within(sde: sde_lib.GaussianSDE, s: float) -> float:
    """The noise scale of the process that is nearest to s."""
    low, high = (float(sde.noise_scale(np.float64(t))) for t in (1e-3, 1.0))
    return float(np.clip(s, low, high))


def look(declared: Convention, others: Iterable[Convention], pictures: np.ndarray) -> Verdict:
    """Judges the declared convention and the others on the same pictures and noise.

    Three network calls (of len(pictures) images) for each different way to feed a network.
    """
    outputs: dict = {}
    first = judge(declared, pictures, outputs)
    judged = [judge(other, pictures, outputs) for other in others]
    least = min((other.ratio for other in judged), default=np.inf)
    if not least < CLEAR * first.ratio:
        return Verdict(first, first)
    alike = [other for other in judged if other.ratio <= ALIKE * least]
    return Verdict(first, min(alike, key=lambda other: len(Verdict(first, other).changes)))
