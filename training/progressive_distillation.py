"""Progressive distillation: a student whose one DDIM step lands where several of its teacher's do.

Salimans and Ho (2022), "Progressive distillation for fast sampling of diffusion models". A stage takes a teacher of
N factor steps and teaches a student of N steps; the student is the next stage's teacher, until few steps are left.
Everything is said in y = x/alpha and s = sigma/alpha, where a model of any process and prediction is a denoiser
x0(y, s) and a DDIM step is y' = x0 + s'/s (y - x0). Divided by s' the steps s_0 > ... > s_K add up,

    y_K/s_K = y_0/s_0 + sum_k x0_k (1/s_{k+1} - 1/s_k),

so the one estimate that takes y_0 to y_K in a single step is a mean of the teacher's estimates,

    x~ = sum_k w_k x0_k,    w_k = (1/s_{k+1} - 1/s_k)/(1/s_K - 1/s_0),    sum_k w_k = 1.

For K = 2 this is x1 + c (x2 - x1) with c = s_t (s_m - s_s)/(s_m (s_t - s_s)): the paper's target, without the
difference of nearly equal states that costs its own form three digits in float32. A step to s_K = 0 has x~ = x0_{K-1},
the paper's exception for the last step. Heun's step is a DDIM step too, with a mean of its two estimates.

Targets are made before the update, as part of the batch: the loss is a weighted square, the same function for every
stage, and nothing of the teacher is differentiated, averaged or saved.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Keys, PerImage, Scalar, Table
from data.pipeline import to_model_range
from models.denoiser import Denoiser
from sampling import denoising
from training.devices import spread
from training.loop import BatchSource

WEIGHTINGS = ("constant", "snr", "snr_trunc", "v")
TARGETS = ("two_step", "x2")
SOLVERS = ("ddim", "heun")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Settings of targets and loss (config.distill); hashable, static under jit."""

    weighting: str = "snr_trunc"  # of the squared error of x0, see `weight`
    target: str = "two_step"  # "x2": the last estimate alone, as the unofficial program has it
    solver: str = "ddim"  # of the teacher's steps: "ddim", or "heun" with two calls a step
    clip: bool = False  # the teacher's estimates to the data range
    centered: bool = True  # the data range is [-1, 1], else [0, 1]

    def __post_init__(self):
        for key, choices in (("weighting", WEIGHTINGS), ("target", TARGETS), ("solver", SOLVERS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"config.distill.{key}={getattr(self, key)!r} is unknown; choose one of {choices}.")

    @property
    def unit(self) -> float:
        """Factor from the data range to units of [-1, 1]."""
        return 1.0 if self.centered else 2.0


# --- Stages ---


class Stage(NamedTuple):
    """A teacher of `num_steps` times `factor` steps and a student of `num_steps`."""

    grid: Table  # the teacher's noise scales, decreasing, the last 0
    factor: int  # its steps that a student's step replaces; 1: the student is to be the teacher's equal

    @property
    def num_steps(self) -> int:
        return (len(self.grid) - 1) // self.factor

    @property
    def student_grid(self) -> Table:
        return self.grid[:: self.factor]

    @property
    def paths(self) -> np.ndarray:
        """The teacher's noise scales within each step of the student, [num_steps, factor + 1]."""
        first = np.arange(self.num_steps)[:, None] * self.factor
        return self.grid[first + np.arange(self.factor + 1)[None]]


def stages(grid: Table, end_steps: int, factor: int = 2) -> list[Stage]:
    """The stages from a teacher on `grid` (its last noise scale 0) down to `end_steps`, each on the grid's own points.

    Raises ValueError where the steps do not divide.
    """
    start = len(grid) - 1
    counts = [start]
    while counts[-1] > end_steps and counts[-1] % factor == 0 and factor > 1:
        counts.append(counts[-1] // factor)
    if counts[-1] != end_steps or len(counts) == 1:
        raise ValueError(
            f"config.distill.start_steps={start} cannot be divided by config.distill.factor={factor} again and again "
            f"down to config.distill.end_steps={end_steps}; choose such as 64, 2 and 4."
        )
    return [Stage(grid[:: start // count], factor) for count in counts[:-1]]


# --- The target ---


def implied_weights(s: np.ndarray | jax.Array) -> np.ndarray:
    """w_k of the module's equation for noise scales s [..., K + 1] that decrease, the last perhaps 0: [..., K] float64.

    w_1 of three noise scales is the paper's coefficient c.
    """
    s = np.asarray(s, np.float64)
    # s_K/s_{k+1}, which is 1 at the end whatever s_K is.
    shares = np.concatenate([s[..., -1:] / s[..., :-1], np.ones_like(s[..., :1])], axis=-1)
    return np.diff(shares, axis=-1) / (1 - shares[..., :1])


def target(
    settings: Distillation, teacher: denoising.Denoiser, y: Image, s: jax.Array, weights: jax.Array
) -> tuple[Image, Image]:
    """x~ and the state y_K that it leads to, from y [b, h, w, c]; K calls of the teacher, 2 K less the last for Heun.

    Args:
      s: noise scales of its steps, [b, K + 1]; weights [b, K] from `implied_weights`.
    """
    start, steps = y, weights.shape[1]
    s, weights = s[:, :, None, None, None], weights[:, :, None, None, None]

    def estimate(y: Image, k: int) -> Image:
        x0 = teacher(y, s[:, k, 0, 0, 0]).astype(y.dtype)
        return jnp.clip(x0, -1.0 if settings.centered else 0.0, 1.0) if settings.clip else x0

    total, x0 = jnp.zeros_like(y), y
    for k in range(steps):
        ratio = s[:, k + 1] / s[:, k]
        x0 = estimate(y, k)
        if settings.solver == "heun":
            # Where the step ends without noise, it is Euler's: the second estimate gets no weight.
            ends = s[:, k + 1] > 0
            safe = jnp.where(ends, s[:, k + 1], s[:, k])
            second = teacher(x0 + safe / s[:, k] * (y - x0), safe[:, 0, 0, 0]).astype(y.dtype)
            share = jnp.where(ends, s[:, k] / (2 * safe), 0.0)
            x0 = x0 + share * (second - x0)
        total = total + weights[:, k] * x0
        y = x0 + ratio * (y - x0)
    if settings.target == "x2":
        total = x0
    return total, total + s[:, -1] / s[:, 0] * (start - total)


def weight(settings: Distillation, s: jax.Array) -> jax.Array:
    """What multiplies the squared error of x0 in units of [-1, 1] data, at noise scales s in the data range.

    With SNR = 1/s^2: "constant" 1; "snr" SNR, the squared error of eps; "snr_trunc" max(SNR, 1); "v" SNR + 1.
    """
    snr = 1 / (settings.unit * s) ** 2
    return {
        "constant": jnp.ones_like(snr),
        "snr": snr,
        "snr_trunc": jnp.maximum(snr, 1.0),
        "v": snr + 1.0,
    }[settings.weighting]


def loss(student: Denoiser, batch: dict[str, jax.Array]) -> PerImage:
    """weight |x0(y, s) - target|^2, mean over pixels, of each image, [b]; never reduced here.

    batch: `y` and `target` [b, h, w, c] in the data range, `s` and `weight` [b]; what a source below makes. Other
    entries are the student's conditions, such as `classes` [b].
    """
    conditions = {key: value for key, value in batch.items() if key not in ("y", "s", "target", "weight")}
    error = student.given(**conditions)(batch["y"], batch["s"]) - batch["target"]
    return batch["weight"] * jnp.mean(jnp.square(error), axis=(1, 2, 3))


# --- Batches of targets ---


def image_keys(seed: int, stage: int, step: int, count: int) -> Keys:
    """One key an image of batch `step` of the stage of `stage` student steps; nothing depends on the device."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stage), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


class Skipped:
    """How many images had a target that is not finite and were given weight 0; read at the end of a stage."""

    def __init__(self) -> None:
        self._counts: list[jax.Array] = []

    def add(self, count: jax.Array) -> None:
        self._counts.append(count)

    def total(self) -> int:
        self._counts = [jnp.asarray(sum(int(count) for count in self._counts))]
        return int(self._counts[0])


def finite(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    """The batch with weight, target and state 0 where the teacher's target is not finite, and how many those are.

    Zero weights alone would not do: 0 times NaN is NaN, in the loss and in its gradient.
    """
    good = jnp.isfinite(batch["target"]).all((1, 2, 3)) & jnp.isfinite(batch["y"]).all((1, 2, 3))
    image = good[:, None, None, None]
    cleaned = {key: jnp.where(image, batch[key], 0.0) for key in ("y", "target")}
    return batch | cleaned | {"weight": jnp.where(good, batch["weight"], 0.0)}, jnp.sum(~good)


class Conditions(NamedTuple):
    """What else is drawn for each image."""

    num_classes: int = 0  # 0: the network is told no class
    guidance: tuple[float, float] | None = None  # range of the guidance weights that the student is told

    def draw(self, keys: Keys) -> dict[str, jax.Array]:
        """`classes` and `guidance` [b], those that there are."""
        drawn = {}
        if self.num_classes:
            pick = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, self.num_classes))
            drawn["classes"] = pick(keys)
        if self.guidance:
            low, high = self.guidance
            drawn["guidance"] = jax.vmap(
                lambda key: jax.random.uniform(jax.random.fold_in(key, 2), (), jnp.float32, low, high)
            )(keys)
        return drawn


@functools.partial(jax.jit, static_argnames=("settings", "conditions"))
def _from_images(
    settings: Distillation,
    conditions: Conditions,
    teacher: Denoiser,
    x0: Image,
    given: dict[str, jax.Array],
    s: jax.Array,
    weights: jax.Array,
    keys: Keys,
) -> tuple[dict[str, jax.Array], jax.Array]:
    s, weights = s.astype(x0.dtype), weights.astype(x0.dtype)
    noise = denoising.start_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), x0.shape[1:])
    y = x0 + s[:, :1, None, None] * noise
    return _batch(settings, teacher, y, s, weights, given | conditions.draw(keys))[:2]


def _batch(settings: Distillation, teacher: Denoiser, y: Image, s: jax.Array, weights: jax.Array, given: dict):
    x0, y_next = target(settings, teacher.given(**given), y, s, weights)
    scale = weight(settings, s[:, 0]) * settings.unit**2
    batch, bad = finite({"y": y, "s": s[:, 0], "target": x0, "weight": scale} | given)
    return batch, bad, y_next


@dataclasses.dataclass(frozen=True, eq=False)
class FromImages:
    """Targets at images noised to a random step of the student, as published: `factor` teacher calls an image.

    Attributes:
      images: `data.pipeline.Batches`; labels become classes where `conditions` has any.
      teacher: a denoiser with its parameters.
      seed: of steps and noise; batch k of a stage depends on it, the stage and k alone.
    """

    settings: Distillation
    stage: Stage
    teacher: Denoiser
    images: BatchSource
    seed: int
    conditions: Conditions = Conditions()
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    def batch(self, step: int) -> dict[str, Any]:
        found = self.images.batch(step)
        x0 = to_model_range(found["image"], self.settings.centered)
        draw = np.random.Generator(np.random.Philox(key=[self.seed, (self.stage.num_steps << 32) + step]))
        paths = self.stage.paths[draw.integers(0, self.stage.num_steps, len(x0))]
        keys = image_keys(self.seed, self.stage.num_steps, step, len(x0))
        given = {"classes": np.asarray(found["label"])} if self.conditions.num_classes else {}
        per_image = spread((x0, given, paths, implied_weights(paths), keys))
        batch, bad = _from_images(self.settings, self.conditions._replace(num_classes=0), self.teacher, *per_image)
        self.skipped.add(bad)
        return batch


@functools.partial(jax.jit, static_argnames=("settings", "conditions", "shape"))
def _from_paths(
    settings: Distillation,
    conditions: Conditions,
    shape: tuple[int, int, int],
    teacher: Denoiser,
    prior_scale: Scalar,
    s: jax.Array,
    weights: jax.Array,
    keys: Keys,
) -> tuple[dict[str, jax.Array], jax.Array]:
    given = conditions.draw(keys)
    noise = denoising.start_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape)

    def step(y: Image, row: tuple[jax.Array, jax.Array]):
        of_path, of_weights = (jnp.repeat(part[None], len(y), axis=0).astype(y.dtype) for part in row)
        batch, bad, y_next = _batch(settings, teacher, y, of_path, of_weights, given)
        return y_next, (batch, bad)

    _, (batches, bad) = jax.lax.scan(step, prior_scale * noise, (s, weights))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches), bad.sum()


@dataclasses.dataclass(frozen=True, eq=False)
class FromPaths:
    """Targets along the teacher's own paths from fresh noise: no image is needed, and no call is wasted.

    A path of the teacher gives a target for each step of the student, where the student will meet it; so a batch of b
    is b/num_steps paths, and the calls an image are those of `FromImages`.

    Attributes:
      batch_size: b.
      shape: of an image, (h, w, c); prior_scale: standard deviation of y where the grid begins.
    """

    settings: Distillation
    stage: Stage
    teacher: Denoiser
    batch_size: int
    shape: tuple[int, int, int]
    prior_scale: float
    seed: int
    conditions: Conditions = Conditions()
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    def __post_init__(self):
        if self.batch_size % self.stage.num_steps:
            raise ValueError(
                f"config.training.batch_size={self.batch_size} is not a multiple of the {self.stage.num_steps} steps "
                "of a student that learns from paths of its teacher; change it, or take --config.distill.data=images."
            )

    def batch(self, step: int) -> dict[str, Any]:
        keys = spread(image_keys(self.seed, self.stage.num_steps, step, self.batch_size // self.stage.num_steps))
        tables = self.stage.paths, implied_weights(self.stage.paths)
        batch, bad = _from_paths(
            self.settings, self.conditions, self.shape, self.teacher, self.prior_scale, *tables, keys
        )
        self.skipped.add(bad)
        return batch
