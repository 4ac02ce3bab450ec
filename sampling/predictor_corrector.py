"""Preconditioned predictor-corrector sampling (PDS; Ma et al. 2022) and, with the identity, the plain kind.

At every noise level the corrector takes Langevin steps and the predictor steps to the level below. With a
preconditioner M both use the drift M M^T s and the noise M z. Three modes say how:

* "marginal": the predictor splits into half a probability-flow step and half a Langevin step and preconditions the
  Langevin half alone, x_mean = x - f + G^2 (s + M M^T s)/2. It keeps the marginals p_t for every M; M = I is the plain
  step, M -> 0 the probability flow.
* "paper": the whole reverse step goes through M M^T and the start is M z, as in the published program. With the score
  of the unpreconditioned process a mode that M amplifies by m ends, in the limit of fine steps, with m^2/(2 m^2 - 1)
  of its variance.
* "corrector_only": Langevin steps are preconditioned, the predictor is plain.

Every update of all of these is one row of a table, so that the loop calls the network in one place:

    u      = pre_state x + pre_score s              what M M^T acts on
    x_mean = state x + score s + drift M M^T u      drift is the step size of a Langevin row
    x      = x_mean + noise M z
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from array_types import Image, Index, Keys
from precond.base import Identity, Preconditioner
from sampling.base import Sampler
from sampling.correctors import CORRECTORS, STEP_NORMS, Corrector, step_size
from sampling.predictors import PREDICTORS, Predictor
from sde_lib import GaussianSDE, Levels

PDS_MODES = ("marginal", "paper", "corrector_only")


@dataclasses.dataclass(frozen=True)
class PredictorCorrector:
    """Settings of the sampler (config.sampling); hashable and static. Numbers that only enter tables do not
    recompile."""

    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    snr: float = 0.16
    n_steps_each: int = 1
    noise_removal: bool = True
    probability_flow: bool = False
    pds_mode: str = "marginal"
    step_norm: str = "sample"

    def __post_init__(self):
        choices = {
            "predictor": (*PREDICTORS, "none"),
            "corrector": (*CORRECTORS, "none"),
            "pds_mode": PDS_MODES,
            "step_norm": STEP_NORMS,
        }
        for key, values in choices.items():
            if getattr(self, key) not in values:
                raise ValueError(f"config.sampling.{key}={getattr(self, key)!r} is unknown; choose one of {values}.")
        if self.predictor == "none" and self.corrector == "none":
            raise ValueError("config.sampling has neither a predictor nor a corrector: nothing would move.")
        if self.corrector != "none" and self.n_steps_each < 1:
            raise ValueError(f"config.sampling.n_steps_each={self.n_steps_each} must be at least 1.")
        if self.corrector != "none" and not self.snr > 0:
            raise ValueError(f"config.sampling.snr={self.snr} must be positive.")

    @property
    def published(self) -> bool:
        """The level tables and coefficients of the published program, errors of discretisation included."""
        return self.pds_mode == "paper"

    def steps_per_level(self) -> int:
        """Network calls a level."""
        return (self.corrector != "none") * self.n_steps_each + (self.predictor != "none")


class Rows(NamedTuple):
    """One row an update, in the order they run; see the module docstring. Floats [n] unless said."""

    t: Any
    state: Any
    score: Any
    pre_state: Any
    pre_score: Any
    drift: Any  # fixed coefficient of M M^T u
    relative: Any  # Langevin: the coefficient is relative (||M z||/||M M^T u||)^2 instead; else 0
    noise: Any  # fixed coefficient of the noise; Langevin adds sqrt(2 step)
    filtered: Any  # bool: M acts in this update
    noisy: Any  # bool: noise is drawn
    index: Any  # int: which draw of an image's noise this is


def _predictor_rows(
    settings: PredictorCorrector, sde: GaussianSDE, levels: Levels, filtered: bool
) -> dict[str, np.ndarray]:
    step: Predictor = PREDICTORS[settings.predictor](sde, levels, settings.probability_flow, settings.published)
    noise = step.noise.copy()
    if settings.noise_removal:
        noise[-1] = 0.0  # the mean of the last step is the image
    zero = np.zeros_like(noise)
    row = dict(relative=zero, noise=noise, noisy=noise > 0)
    if not filtered:
        return row | dict(state=step.state, score=step.score, pre_state=zero, pre_score=zero, drift=zero)
    if settings.pds_mode == "paper":
        one = zero + 1
        return row | dict(state=one, score=zero, pre_state=step.state - 1, pre_score=step.score, drift=one)
    # The noise of variance noise^2 is balanced by the Langevin drift noise^2/2 of that step; the rest is deterministic.
    langevin = 0.5 * step.noise**2
    return row | dict(state=step.state, score=step.score - langevin, pre_state=zero, pre_score=zero + 1, drift=langevin)


def _corrector_rows(settings: PredictorCorrector, sde: GaussianSDE, levels: Levels) -> dict[str, np.ndarray]:
    step: Corrector = CORRECTORS[settings.corrector](sde, levels, settings.snr)
    zero = np.zeros_like(step.fixed)
    return dict(
        state=zero + 1,
        score=zero,
        pre_state=zero,
        pre_score=zero + 1,
        drift=step.fixed,
        relative=step.relative,
        noise=np.sqrt(2 * step.fixed),
        noisy=np.ones(len(zero), bool),
    )


def table(
    settings: PredictorCorrector, sde: GaussianSDE, levels: Levels, preconditioned: bool, quirks: bool = False
) -> Rows:
    """All updates of a run: at each level n_steps_each corrector rows, then the predictor's.

    Args:
      preconditioned: a mask is set, so that "paper" and "marginal" filter the predictor too.
      quirks: reproduce the published program where it ignores the masks (euler_maruyama, ancestral, ald).

    Raises ValueError for combinations that the published program accepts while ignoring the masks, unless `quirks`.
    """
    unfiltered = settings.pds_mode == "paper" and settings.predictor in ("euler_maruyama", "ancestral")
    unfiltered_corrector = settings.pds_mode == "paper" and settings.corrector == "ald"
    if preconditioned and (unfiltered or unfiltered_corrector) and not quirks:
        part = f"predictor={settings.predictor}" if unfiltered else "corrector=ald"
        raise ValueError(
            f"In pds_mode=paper the published program silently ignores the masks with {part}. Choose "
            "--config.sampling.pds_mode=marginal, which filters it, or reproduce the published behaviour with "
            "--config.sampling.published_quirks=True."
        )
    blocks: list[dict[str, np.ndarray]] = []
    if settings.corrector != "none":
        filtered = preconditioned and not unfiltered_corrector
        row = _corrector_rows(settings, sde, levels) | {"filtered": np.full(len(levels.t), filtered)}
        blocks += [row] * settings.n_steps_each
    if settings.predictor != "none":
        filtered = preconditioned and settings.pds_mode != "corrector_only" and not unfiltered
        row = _predictor_rows(settings, sde, levels, filtered) | {"filtered": np.full(len(levels.t), filtered)}
        blocks.append(row)
    columns = {key: np.stack([block[key] for block in blocks], axis=1).reshape(-1) for key in blocks[0]}
    return Rows(**columns, t=np.repeat(levels.t, len(blocks)), index=1 + np.arange(len(columns["state"])))


class Operands(NamedTuple):
    """What stays fixed during a run: the network with its parameters, M, and each image's key."""

    denoiser: Any  # has score(x, t)
    preconditioner: Preconditioner
    keys: Keys  # [b]


class State(NamedTuple):
    """x at the current level, [b, h, w, c], in the process's own coordinates and the model's data range."""

    x: Image


def start(keys: Keys, shape: tuple[int, int, int], prior_sigma: float, m: Preconditioner, filtered: bool) -> State:
    """x_T = sigma_max z with z = normal(key of the image); M z instead where `filtered` (the published start)."""
    z = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
    return State(prior_sigma * (m.apply_noise(z) if filtered else z))


def update(settings: PredictorCorrector, operands: Operands, x: Image, row: Rows, z: Image) -> tuple[Image, Image]:
    """One predictor or corrector update of x [b, h, w, c] with standard normal z; 1 network call.

    Returns x after the update, and the score that it used.
    """
    t = jnp.full(x.shape[:1], row.t, x.dtype)
    score = operands.denoiser.score(x, t).astype(x.dtype)

    def move(m: Preconditioner) -> Image:
        prepared = m.prepare(row.pre_state * x + row.pre_score * score, z)
        drift_norm, noise_norm = prepared.norms()
        step = step_size(row.relative, row.drift, drift_norm, noise_norm, settings.step_norm)
        return prepared.combine(step, row.noise + jnp.sqrt(2 * (step - row.drift)))

    moved = jax.lax.cond(row.filtered, lambda: move(operands.preconditioner), lambda: move(Identity()))
    return row.state * x + row.score * score + moved, score


@dataclasses.dataclass(frozen=True)
class Step:
    """`sampling.base.Step` of the sampler; records states and x0 estimates if `record`."""

    settings: PredictorCorrector
    sde: GaussianSDE
    record: bool = False

    def __call__(self, operands: Operands, state: State, row: Rows) -> tuple[State, Any]:
        x = state.x

        def draw(index: Index) -> Image:
            return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:], x.dtype))(
                operands.keys
            )

        z = jax.lax.cond(row.noisy, draw, lambda _: jnp.zeros_like(x), row.index)
        new, score = update(self.settings, operands, x, row, z)
        if not self.record:
            return State(new), None
        alpha, sigma = self.sde.alpha(row.t), self.sde.sigma(row.t)
        return State(new), (new, (x + sigma**2 * score) / alpha)


def create(
    settings: PredictorCorrector,
    denoiser: Any,
    levels: Levels,
    preconditioner: Preconditioner,
    shape: tuple[int, int, int],
    quirks: bool = False,
    record: bool = False,
) -> Sampler:
    """The sampler for images of `shape` (h, w, c) over `levels`; NFE = levels x (corrector steps + predictor).

    Raises ValueError for the combinations `table` refuses.
    """
    preconditioned = not isinstance(preconditioner, Identity)
    rows = table(settings, denoiser.sde, levels, preconditioned, quirks)
    filtered_start = preconditioned and settings.pds_mode == "paper"

    def begin(keys: Keys) -> tuple[Operands, State]:
        state = start(keys, shape, denoiser.sde.prior_sigma, preconditioner, filtered_start)
        return Operands(denoiser, preconditioner, keys), state

    # The table has the signal-to-noise ratio already; another one must not compile another step.
    step = Step(dataclasses.replace(settings, snr=1.0), denoiser.sde, record)
    return Sampler(step, rows, begin, lambda state: state.x, nfe=len(rows.t))
