"""LD3's published training loop, step by step, for comparison with published figures (config.ld3.preset=paper).

Two phases of rounds over pairs in small batches. Phase 1 moves the grid, phase 2 the times told to the network too:
RMSprop with momentum on the logits, plain gradient descent on the shifts. Every pair has a private copy of its noise,
which descends as well but never leaves a small ball around the original and is kept only where it lowers the loss
(soft objective). Validation pairs move in the same way, so the validation loss flatters; `ld3.loss` on noise that has
not moved is what counts. What the program does by accident is kept: the best parameters are reloaded at each round
while the optimiser goes on as it was, and a best loss is compared across rounds.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, PerImage
from training.ld3 import Params, into_ball

Loss = Callable[[Params, Image, Image], PerImage]  # (params, noise, target) -> [b]
STATE_FILE = "published_state.npz"
_SCALARS = ("lr1", "lr2", "shift_lr", "best", "worse", "hits", "iteration", "on_one_batch", "shuffles")


@dataclasses.dataclass(frozen=True)
class Published:
    """Settings of the loop; the defaults are those of its CIFAR-10 configuration at N steps (`settings_for`)."""

    radius: float  # of the ball; 0 leaves the noise as it is
    shift_lr: float  # of the private copies
    lr2: float  # of the shifts
    lr1: float = 0.005  # of the logits
    rounds: tuple[int, int] = (2, 5)  # of phase 1 and 2
    batch_size: int = 2
    valid_batch_size: int = 50
    seed: int | None = 0  # of the order of the pairs; None keeps it
    min_lr1: float = 5e-5
    min_lr2: float = 1e-6
    lr_decay: float = 0.8
    shift_decay: float = 0.5  # of shift_lr, after a round that no validation pair gained from
    momentum: float = 0.9
    patience: int = 5  # looks at the validation loss without gain before the best state is taken up again
    most_hits: int = 5  # of the least lr2 before the loop ends


def settings_for(num_steps: int, dimension: int, **changes: Any) -> Published:
    """The published settings for N steps on images of `dimension` numbers, rounded as there."""
    derived: dict[str, Any] = {
        "radius": round(0.001 * dimension / num_steps**2, 8),
        "shift_lr": round(12 / num_steps, 8),
        "lr2": round(0.1 / num_steps, 8),
    }
    return Published(**derived | changes)


class Look(NamedTuple):
    """What is known at one look at the validation loss."""

    valid: float
    train: float  # of the batch before, NaN at first
    iteration: int
    round: int
    lr1: float
    lr2: float
    on_one_batch: bool
    logits: np.ndarray
    shifts: np.ndarray


class Learned(NamedTuple):
    """The result: best parameters of each phase, every look, how many copies moved in each batch, the copies."""

    grid_only: Params
    best: Params
    looks: list[Look]
    accepted: list[tuple[int, int, int]]  # iteration, accepted, batch size
    train_noise: np.ndarray
    valid_noise: np.ndarray


def _clipped(gradient: jax.Array) -> jax.Array:
    """To norm 1, as torch.nn.utils.clip_grad_norm_ does."""
    return gradient * min(1.0, 1.0 / (float(jnp.linalg.norm(gradient)) + 1e-6))


class _RMSprop:
    """PyTorch's RMSprop with momentum: alpha 0.99, eps 1e-8."""

    def __init__(self, momentum: float):
        self.square: Any = 0.0
        self.velocity: Any = 0.0
        self.momentum = momentum

    def step(self, value: jax.Array, gradient: jax.Array, lr: float) -> jax.Array:
        self.square = 0.99 * self.square + 0.01 * gradient**2
        self.velocity = self.momentum * self.velocity + gradient / (jnp.sqrt(self.square) + 1e-8)
        return value - lr * self.velocity


class Learner:
    """One run of the loop; `run` returns what it learned. A class, because everything in it changes everything else."""

    def __init__(
        self,
        loss: Loss,
        params: Params,
        noise: np.ndarray,
        targets: np.ndarray,
        num_train: int,
        settings: Published,
        on_look: Callable[[Look], None] = lambda look: None,
    ):
        """`noise`, `targets` [n, h, w, c]: training pairs first, then those for validation.

        Raises ValueError for too few pairs.
        """
        count = len(noise) - num_train
        if num_train < settings.batch_size or count < 1:
            raise ValueError(
                f"LD3 has {num_train} pairs to learn from and {count} to be judged on; it needs at least "
                f"{settings.batch_size} (config.ld3.batch_size) and 1. Make more with --mode=pairs."
            )
        self.settings, self.on_look = settings, on_look
        self.losses = jax.jit(loss)
        self.gradients = jax.jit(
            jax.value_and_grad(
                lambda params, z, target: (lambda each: (each.mean(), each))(loss(params, z, target)),
                argnums=(0, 1),
                has_aux=True,
            )
        )
        self.centres = np.asarray(noise)
        self.targets = np.asarray(targets)
        self.train_indices, self.valid_indices = np.arange(num_train), np.arange(num_train, len(noise))
        self.train_noise, self.valid_noise = self.centres[:num_train], self.centres[num_train:]
        self.params = params
        self.optimizer = _RMSprop(settings.momentum)
        self.lr1, self.lr2, self.shift_lr = settings.lr1, settings.lr2, settings.shift_lr
        self.best, self.worse, self.hits, self.iteration = np.inf, 0, 0, 0
        self.on_one_batch = True
        self.best_params = {1: params, 2: params}
        self.best_noise = self.train_noise, self.valid_noise
        self.looks: list[Look] = []
        self.accepted: list[tuple[int, int, int]] = []
        self.shuffles = 0

    def run(self, folder: Path | None = None) -> Learned:
        """All rounds, those after the last one that was saved in `folder`.

        Raises FloatingPointError where the loss is not finite; `on_look` has seen the best so far.
        """
        first = self._restore(folder / STATE_FILE) if folder is not None else 0
        for number in range(first, sum(self.settings.rounds)):
            phase = 1 if number < self.settings.rounds[0] else 2
            if number:
                self.params, self.worse = self.best_params[phase], 0
            if not self._round(number, phase):
                break
            if folder is not None:
                self._save(folder / STATE_FILE, number + 1)
        return Learned(
            self.best_params[1], self.best_params[2], self.looks, self.accepted, self.train_noise, self.valid_noise
        )

    def _save(self, path: Path, rounds: int) -> None:
        """Everything that the rounds to come depend on, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"scalar/{name}": getattr(self, name) for name in _SCALARS} | {"rounds": rounds}
        for name, params in {"now": self.params, "1": self.best_params[1], "2": self.best_params[2]}.items():
            arrays |= {f"params/{name}/{key}": np.asarray(value) for key, value in params.items()}
        arrays |= {f"optimizer/{key}": np.asarray(getattr(self.optimizer, key)) for key in ("square", "velocity")}
        arrays |= {f"noise/{k}": part for k, part in enumerate((self.train_noise, self.valid_noise, *self.best_noise))}
        arrays |= {f"looks/{key}": np.array([getattr(look, key) for look in self.looks]) for key in Look._fields}
        arrays["accepted"] = np.array(self.accepted).reshape(-1, 3)
        with (temporary := path.with_suffix(".part")).open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)

    def _restore(self, path: Path) -> int:
        """Takes up what `_save` wrote, if there is something; the rounds that are done."""
        if not path.exists():
            return 0
        with np.load(path, allow_pickle=False) as file:
            for name in _SCALARS:
                setattr(self, name, file[f"scalar/{name}"].item())
            named = {
                name: {key: jnp.asarray(file[f"params/{name}/{key}"]) for key in self.params}
                for name in ("now", "1", "2")
            }
            self.params, self.best_params = named["now"], {1: named["1"], 2: named["2"]}
            self.optimizer.square, self.optimizer.velocity = file["optimizer/square"], file["optimizer/velocity"]
            self.train_noise, self.valid_noise, *best = (file[f"noise/{k}"] for k in range(4))
            self.best_noise = best[0], best[1]
            columns = [file[f"looks/{key}"] for key in Look._fields]
            self.looks = [Look(*(x.item() if x.ndim == 0 else x for x in row)) for row in zip(*columns, strict=True)]
            self.accepted = [tuple(row) for row in file["accepted"].tolist()]
            return int(file["rounds"])

    def _round(self, number: int, phase: int) -> bool:
        """One round; False where the loop is to end."""
        settings = self.settings
        self._look(number, phase, self.looks[-1].train if self.looks else np.nan)
        new = self.train_noise.copy()
        for places in self._batches(len(self.train_indices)):
            centres, targets = (part[self.train_indices[places]] for part in (self.centres, self.targets))
            (mean, each), (gradient, toward) = self.gradients(self.params, new[places], targets)
            moved = new[places] - self.shift_lr * np.asarray(toward)
            self.params = self._stepped(gradient, phase)
            self.iteration += 1
            self._look(number, phase, float(mean))
            if self.hits >= settings.most_hits:
                return False
            new[places] = self._accepted(centres, new[places], moved, targets, each)
        self.train_noise = new
        if settings.radius:
            new, any_gain = self.valid_noise.copy(), False
            for places in self._batches(len(self.valid_indices)):
                centres, targets = (part[self.valid_indices[places]] for part in (self.centres, self.targets))
                (_, each), (_, toward) = self.gradients(self.params, new[places], targets)
                moved = new[places] - self.shift_lr * np.asarray(toward)
                new[places] = self._accepted(centres, new[places], moved, targets, each)
                any_gain = any_gain or self.accepted[-1][1] > 0
            self.valid_noise = new
            if not any_gain:
                self.shift_lr *= settings.shift_decay
        return True

    def _batches(self, count: int) -> Iterator[np.ndarray]:
        """Places in batches; what is left over at the end is a smaller one."""
        order = np.arange(count)
        if self.settings.seed is not None:
            bits = np.random.Philox(key=self.settings.seed, counter=self.shuffles)
            order, self.shuffles = np.random.Generator(bits).permutation(count), self.shuffles + 1
        return iter([order[i : i + self.settings.batch_size] for i in range(0, count, self.settings.batch_size)])

    def _stepped(self, gradient: Params, phase: int) -> Params:
        logits = self.optimizer.step(self.params["logits"], _clipped(gradient["logits"]), self.lr1)
        shifts = self.params["shifts"]
        if phase == 2:
            shifts = shifts - self.lr2 * _clipped(gradient["shifts"])
        return {"logits": logits, "shifts": shifts}

    def _accepted(self, centres: Any, old: Any, moved: Any, targets: Any, losses: Any) -> np.ndarray:
        """Copies after their step and projection, where the loss under the new parameters fell; else as they were."""
        projected = centres + into_ball(jnp.asarray(moved - centres), self.settings.radius)
        better = np.asarray(self.losses(self.params, projected, targets) < losses)
        self.accepted.append((self.iteration, int(better.sum()), len(better)))
        return np.where(better[:, None, None, None], projected, old)

    def _validate(self) -> float:
        size = self.settings.valid_batch_size
        starts = range(0, len(self.valid_indices), size)
        means = [
            float(
                self.losses(
                    self.params, self.valid_noise[i : i + size], self.targets[self.valid_indices[i : i + size]]
                ).mean()
            )
            for i in ([0] if self.on_one_batch else starts)
        ]
        return float(np.mean(means))

    def _look(self, number: int, phase: int, train: float) -> None:
        """Judges the parameters, keeps the best, and after `patience` looks without gain goes back to them."""
        settings = self.settings
        valid = self._validate()
        if not np.isfinite(valid):
            raise FloatingPointError(
                f"LD3's validation loss is {valid} after {self.iteration} updates; the best grid so far is kept. Lower "
                "config.ld3.lr or begin from another grid (config.ld3.start)."
            )
        look = Look(
            valid,
            train,
            self.iteration,
            number,
            self.lr1,
            self.lr2,
            self.on_one_batch,
            *(np.asarray(self.params[key]) for key in ("logits", "shifts")),
        )
        self.looks.append(look)
        self.on_look(look)
        if valid < self.best:
            self.best, self.worse = valid, 0
            for own in (1, 2) if phase == 1 else (2,):
                self.best_params[own] = self.params
            self.best_noise = self.train_noise, self.valid_noise
            return
        self.worse += 1
        if self.worse < settings.patience:
            return
        self.params, self.worse = self.best_params[phase], 0
        self.train_noise, self.valid_noise = self.best_noise
        if self.on_one_batch:
            self.on_one_batch = False
            self.best = self._validate()
            return
        self.lr1 = max(settings.lr_decay * self.lr1, settings.min_lr1)
        if phase == 2:
            self.lr2 = max(settings.lr_decay * self.lr2, settings.min_lr2)
            self.hits += self.lr2 == settings.min_lr2
