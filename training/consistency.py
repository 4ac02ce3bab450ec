"""Consistency distillation and tuning: a network that maps every point of a path to the path's end.

Song et al. (2023), "Consistency models"; tuned from a pretrained model with a narrowing gap as Geng et al. (2024) do
("Consistency models made easy"), with the pseudo-Huber distance of Song and Dhariwal (2023), "Improved techniques for
training consistency models". With f the network under its boundary wrapper (`sampling.one_pass.Consistency`),

    loss = d(f(y_s, s), stop_gradient(f(y_r, r)))/(s - r),    d(a, b) = sqrt(|a - b|^2 + c^2) - c,    0 <= r < s,

where y_s and y_r lie on one path. At r = 0 the target is the path's end itself. The gap closes as training goes on:
r/s = 1 - n(s) q^-(k+1) in doubling k, with n(s) = 1 + 8 sigmoid(-s), so that small noise scales start at r = 0.

Where paths come from:

* images: y_s = x0 + s z and y_r = x0 + r z with the same noise (tuning; no teacher is called);
* images and a teacher: y_r is a Heun step of the teacher from y_s (distillation);
* the teacher alone: its whole paths from fresh noise, each point with a later one of the same path. Their ends are
  known exactly, so the gap need not close: r = 0 throughout is the plain regression of the end, and no image is needed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Keys, PerImage, Scalar, Table
from data.pipeline import to_model_range
from models.denoiser import Denoiser
from sampling import denoising, single_step
from sampling.base import TimeGrid
from sampling.one_pass import Consistency
from training.devices import spread
from training.loop import BatchSource
from training.progressive_distillation import Skipped, image_keys

WEIGHTINGS = ("inverse_gap", "ones")


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss:
    """Settings of loss and curriculum (config.consistency); hashable, static under jit.

    Noise scales here are in units of [-1, 1] data, as published.
    """

    huber: float = 0.03  # c
    weighting: str = "inverse_gap"  # 1/(s - r), or "ones"
    shrink: float = 2.0  # q
    doubling_steps: int = 10_000  # updates between two narrowings of the gap; 0: r = 0 throughout
    mean: float = -1.1  # of log s
    std: float = 2.0  # of log s
    s_min: float = 0.01  # of the process, in the data range
    s_max: float = 50.0
    centered: bool = True  # the data range is [-1, 1], else [0, 1]

    def __post_init__(self):
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"config.consistency.weighting={self.weighting!r} is unknown; choose one of {WEIGHTINGS}.")
        if self.shrink <= 1 or self.huber < 0 or self.doubling_steps < 0:
            raise ValueError(
                "config.consistency needs shrink > 1, huber >= 0 and doubling_steps >= 0, got "
                f"{self.shrink}, {self.huber} and {self.doubling_steps}."
            )

    @property
    def unit(self) -> float:
        """Factor from the data range to units of [-1, 1]."""
        return 1.0 if self.centered else 2.0

    def gap(self, step: int) -> float:
        """q^-(k+1) at update `step` from 0, in doubling k; 0 doubling_steps keep the widest gap, 1."""
        return self.shrink ** -(step // self.doubling_steps + 1) if self.doubling_steps else 1.0


def nearer(settings: ConsistencyLoss, s: jax.Array, gap: jax.Array | float) -> jax.Array:
    """r < s in the data range: s (1 - gap (1 + 8 sigmoid(-s))), 0 where that is negative or below s_min."""
    r = s * (1 - gap * (1 + 8 * jax.nn.sigmoid(-settings.unit * s)))
    return jnp.where(r > settings.s_min, r, 0.0)


def distance(settings: ConsistencyLoss, found: Image, target: Image) -> PerImage:
    """Pseudo-Huber distance of whole images in units of [-1, 1], [b]; c = 0 is the norm."""
    squared = jnp.sum(jnp.square(settings.unit * (found - target)), axis=(1, 2, 3))
    # The norm has no gradient at 0, where two images agree to the last bit.
    floor = jnp.maximum(settings.huber**2, 1e-12)
    return jnp.sqrt(squared + floor) - jnp.sqrt(floor)


def loss(settings: ConsistencyLoss, student: Denoiser, batch: dict[str, jax.Array]) -> PerImage:
    """The loss of each image, [b]; 2 network calls, one of them with a gradient.

    batch: `y` and `y_r` [b, h, w, c] on one path at noise scales `s` and `r` [b]; `weight` [b], 0 for an image that the
    teacher failed on. Other entries are the student's conditions.
    """
    conditions = {key: value for key, value in batch.items() if key not in ("y", "s", "y_r", "r", "weight")}
    f = Consistency(student.given(**conditions), settings.s_min)
    target = jax.lax.stop_gradient(f(batch["y_r"], batch["r"]))
    gap = settings.unit * (batch["s"] - batch["r"]) if settings.weighting == "inverse_gap" else 1.0
    return batch["weight"] * distance(settings, f(batch["y"], batch["s"]), target) / gap


def finite(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    """The batch with both states 0 and weight 0 where one of them is not finite, and how many those are."""
    good = jnp.isfinite(batch["y"]).all((1, 2, 3)) & jnp.isfinite(batch["y_r"]).all((1, 2, 3))
    cleaned = {key: jnp.where(good[:, None, None, None], batch[key], 0.0) for key in ("y", "y_r")}
    return batch | cleaned | {"weight": good.astype(batch["y"].dtype)}, jnp.sum(~good)


# --- Paths from images ---


@functools.partial(jax.jit, static_argnames=("settings",))
def _from_images(
    settings: ConsistencyLoss, teacher: Denoiser | None, x0: Image, given: dict, keys: Keys, gap: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    key_s, key_z = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (0, 1))
    log_s = settings.mean + settings.std * jax.vmap(lambda key: jax.random.normal(key, (), x0.dtype))(key_s)
    # A little above s_min, where f(y, s) = y has nothing to learn.
    s = jnp.clip(jnp.exp(log_s) / settings.unit, 1.1 * settings.s_min, settings.s_max)
    r = nearer(settings, s, gap)
    noise = denoising.start_noise(key_z, x0.shape[1:])
    y = x0 + s[:, None, None, None] * noise
    y_r = x0 + r[:, None, None, None] * noise
    if teacher is not None:
        stepped = heun(teacher.given(**given), y, s, jnp.maximum(r, settings.s_min))
        y_r = jnp.where((r > 0)[:, None, None, None], stepped, x0)  # without a gap to step, the image is the end
    return finite({"y": y, "s": s, "y_r": y_r, "r": r} | given)


def heun(teacher: denoising.Denoiser, y: Image, s: jax.Array, r: jax.Array) -> Image:
    """One Heun step of each image from s [b] to r [b] > 0; 2 calls."""
    wide, narrow = s[:, None, None, None], r[:, None, None, None]
    slope = (y - teacher(y, s)) / wide
    euler = y + (narrow - wide) * slope
    return y + (narrow - wide) * (slope + (euler - teacher(euler, r)) / narrow) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class FromImages:
    """Pairs on paths through images; with a teacher, its own step between them (2 teacher calls an image).

    Attributes:
      images: `data.pipeline.Batches`.
      seed: of noise scales and noise; batch k depends on it and k alone.
      classes: labels of the images are told to the network.
    """

    settings: ConsistencyLoss
    images: BatchSource
    seed: int
    teacher: Denoiser | None = None
    classes: bool = False
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    def batch(self, step: int) -> dict[str, Any]:
        found = self.images.batch(step)
        x0 = to_model_range(found["image"], self.settings.centered)
        given = {"classes": np.asarray(found["label"])} if self.classes else {}
        per_image = spread((x0, given, image_keys(self.seed, 0, step, len(x0))))
        batch, bad = _from_images(self.settings, self.teacher, *per_image, np.float32(self.settings.gap(step)))
        self.skipped.add(bad)
        return batch


# --- The teacher's own paths ---


@functools.partial(jax.jit, static_argnames=("num_classes", "shape"))
def _paths(
    num_classes: int, shape: tuple[int, int, int], teacher: Denoiser, prior_scale: Scalar, rows: Any, keys: Keys
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """States of Heun's path at every point of the grid, [n + 1, b, h, w, c]."""
    key_z, key_c = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (0, 1))
    given = {}
    if num_classes:
        given["classes"] = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(key_c)
    teacher = teacher.given(**given)
    y = prior_scale * denoising.start_noise(key_z, shape)

    def step(y: Image, row: single_step.Rows) -> tuple[Image, Image]:
        y_next = single_step.heun_step(teacher, single_step.init(y), row)[0].y
        return y_next, y_next

    _, states = jax.lax.scan(step, y, jax.tree.map(lambda leaf: leaf.astype(y.dtype), rows))
    return jnp.concatenate([y[None], states]), given


@dataclasses.dataclass(frozen=True, eq=False)
class FromPaths:
    """Pairs on the teacher's own paths: every point but the last of a path, with a later one. No image is needed.

    Attributes:
      grid: the teacher's noise scales, n + 1 of them, the last 0; Heun's steps, 2 n - 1 calls a path.
      batch_size: b = n times the number of paths; so 2 - 1/n calls an image.
      shape: of an image, (h, w, c); prior_scale: standard deviation of y where the grid begins.
    """

    settings: ConsistencyLoss
    grid: Table
    teacher: Denoiser
    batch_size: int
    shape: tuple[int, int, int]
    prior_scale: float
    seed: int
    num_classes: int = 0
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    def __post_init__(self):
        if self.batch_size % (len(self.grid) - 1):
            raise ValueError(
                f"config.training.batch_size={self.batch_size} is not a multiple of the {len(self.grid) - 1} steps of "
                "the teacher's paths (config.distill.start_steps); change it, or take --config.distill.data=images."
            )

    def later(self, step: int) -> np.ndarray:
        """For each point but the last, the index of the later one at update `step`: the last where the gap is 1."""
        here = np.arange(len(self.grid) - 1)
        share = self.settings.gap(step)
        return here + np.maximum(1, np.ceil((len(self.grid) - 1 - here) * share)).astype(int)

    def batch(self, step: int) -> dict[str, Any]:
        n = len(self.grid) - 1
        keys = spread(image_keys(self.seed, n, step, self.batch_size // n))
        rows = single_step.rows(TimeGrid(self.grid, self.grid))
        states, given = _paths(self.num_classes, self.shape, self.teacher, self.prior_scale, rows, keys)
        later = self.later(step)
        batch, bad = _pairs(states, self.grid[:-1], self.grid[later], later, given)
        self.skipped.add(bad)
        return batch


@jax.jit
def _pairs(states: jax.Array, s: jax.Array, r: jax.Array, later: jax.Array, given: dict) -> tuple[dict, jax.Array]:
    count = states.shape[1]

    def flat(part: jax.Array) -> jax.Array:
        return part.reshape(-1, *part.shape[2:])

    repeated = {key: jnp.tile(value, len(s)) for key, value in given.items()}
    scales = {key: jnp.repeat(value.astype(states.dtype), count) for key, value in (("s", s), ("r", r))}
    return finite({"y": flat(states[:-1]), "y_r": flat(states[later])} | scales | repeated)
