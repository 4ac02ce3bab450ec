"""What the tests of learned schedules share: the clocks of the published program and its analytic model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import golden_folder
from sampling_oracles import Mixture

import sde_lib
from sampling import time_grids
from training import ld3


def golden(name):
    return np.load(golden_folder("ld3") / name)


@dataclasses.dataclass(frozen=True)
class SigmaTime(sde_lib.VESDE):
    """EDM's clock as the program has it: t = sigma."""

    def alpha(self, t):
        return 1 + 0 * t

    def noise_scale(self, t):
        return t

    def time(self, s):
        return s


@dataclasses.dataclass(frozen=True)
class LatentTime(sde_lib.VESDE):
    """The discrete clock of latent models: log alpha piecewise linear through 1000 levels at t = k/1000."""

    first: float = 0.0015
    last: float = 0.0195

    def _table(self):
        betas = np.linspace(self.first**0.5, self.last**0.5, 1000) ** 2
        return np.arange(1, 1001) / 1000, 0.5 * np.cumsum(np.log1p(-betas))

    def alpha(self, t):
        xp = jnp if isinstance(t, jax.Array) else np
        return xp.exp(xp.interp(t, *self._table()))

    def noise_scale(self, t):
        alpha = self.alpha(t)
        return (1 - alpha**2) ** 0.5 / alpha

    def time(self, s):
        xp, (times, log_alpha) = jnp if isinstance(s, jax.Array) else np, self._table()
        return xp.interp(0.5 * xp.log1p(s**2), -log_alpha, times)


CLOCKS = {
    "ve_edm": (SigmaTime(), 80.0, 0.002),
    "vp_linear": (sde_lib.VPSDE(), 1.0, 1e-3),
    "vp_discrete_ldm": (LatentTime(), 1.0, 1e-3),
}


def space(schedule, mode="lambda", **settings):
    clock, start, end = CLOCKS[schedule]
    s_max, s_min = (float(clock.noise_scale(np.float64(t))) for t in (start, end))
    return ld3.Space(clock, s_max, s_min, "lam" if mode == "lambda" else "time", **settings)


def mixture(prefix=None):
    """The data law of the analytic model, or that of run `prefix`."""
    if prefix is None:
        stored = golden("model.npz")
        return Mixture(*(jnp.asarray(stored[key]) for key in ("weights", "means", "stds")))
    stored = golden("runs.npz")
    return Mixture(*(jnp.asarray(stored[f"{prefix}/mix_{key}"]) for key in ("weights", "means", "stds")))


def teacher(law, noise, prior_scale, where, grid):
    """The image of the published teacher, UniPC-3 bh1 on 20 steps of `grid`."""
    params = {"logits": jnp.asarray(ld3.logits_of(where, grid))}
    student = ld3.Student("unipc", 3, "bh1")
    return jax.jit(lambda z: ld3.solve(where, student, params, law, prior_scale * z, unrolled=False))(noise)


def pairs(run, count, test_count=0, shape=(3, 8, 8), law=None):
    """(noise, targets, test noise, test targets) of a recorded run: its generator, its teacher."""
    random = np.random.RandomState(int(golden("runs.npz")[f"{run}/test_seed"]))
    noise = random.randn(count + test_count, *shape)
    grid = time_grids.edm(20, 80.0, 0.002)
    targets = np.asarray(teacher(law or mixture(), jnp.asarray(noise), 80.0, space("ve_edm"), grid))
    return noise[:count], targets[:count], noise[count:], targets[count:]
