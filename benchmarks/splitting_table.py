"""Guided solvers on a problem with a known answer: root mean square error of the image, without a network.

python -m benchmarks.splitting_table [--tau 0.1] [--scale 5]

Data: every pixel is a mixture of three Gaussians of standard deviation 0.1 to 0.3. Guidance: an observation of all
pixels with noise tau, its log likelihood times the scale. Grid: N steps of the rho-7 grid from 80 to 0.01. The
reference is Strang splitting with Heun and the exact conditional flow in 4000 steps. A minute on a CPU.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from array_types import Image, Scalar
from sampling import base, inverse_problems, operators, splitting, time_grids
from sampling.base import TimeGrid
from sampling.guidance import Schedule
from sampling.splitting import Settings

_TAU = flags.DEFINE_float("tau", 0.1, "Noise of the observation.")
_SCALE = flags.DEFINE_float("scale", 5.0, "Guidance scale.")
STEPS = (5, 10, 20, 40)
SHAPE = (8, 8, 3)


class PixelMixture(NamedTuple):
    """The exact denoiser of independent pixels, each a mixture of Gaussians with means [k, h, w, c] and stds [k]."""

    means: Any
    stds: Any

    def __call__(self, y: Image, s: Scalar) -> Image:
        variance = (self.stds**2 + s**2)[:, None, None, None, None]
        distance = y[None] - self.means[:, None]
        share = jax.nn.softmax(-0.5 * jnp.log(variance) - distance**2 / (2 * variance), axis=0)
        return y - s**2 * jnp.sum(share * distance / variance, axis=0)


def candidates(n: int) -> dict[str, Settings]:
    """The rows of the table."""
    rows = {"ddim": splitting.settings("ddim", n), "heun, unsplit": splitting.settings("heun", n)}
    rows["dpmpp (2M), unsplit"] = Settings("none", "dpmpp", 2)
    for method in ("plms2", "plms4", "ltsp2", "ltsp4", "stsp2", "stsp4"):
        rows[f"{method}, official"] = splitting.settings(method, n, "official")
    for method in ("ltsp2", "ltsp4", "stsp2", "stsp4"):
        rows[f"{method}, corrected"] = splitting.settings(method, n)
    rows["stsp2, 8 substeps"] = splitting.settings("stsp2", n, substeps=8)
    rows["stsp2, automatic substeps"] = splitting.settings("stsp2", n, substeps=0)
    rows["ltsp2, exact flow"] = splitting.settings("ltsp2", n, conditional="flow")
    rows["stsp2, exact flow"] = splitting.settings("stsp2", n, conditional="flow")
    rows["Strang, Heun and exact flow"] = Settings("strang", "heun", conditional="flow")
    return rows


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_enable_x64", True)
    keys = jax.random.split(jax.random.key(0), 3)
    denoiser: Any = PixelMixture(jax.random.uniform(keys[0], (3, *SHAPE), minval=-1), jnp.array([0.1, 0.2, 0.3]))
    target = jax.random.uniform(keys[1], (1, *SHAPE), minval=-1)
    guide = inverse_problems.Direct(operators.Inpainting(jnp.ones((*SHAPE[:2], 1))), target, _TAU.value)
    start = 80 * jax.random.normal(keys[2], (4, *SHAPE))

    def run(settings: Settings, n: int) -> tuple[Image, splitting.Plan]:
        s, schedule = time_grids.edm(n, 80.0, 0.01), Schedule(_SCALE.value)
        plan = splitting.plan(settings, TimeGrid(s, s), schedule, curvature=guide.curvature)
        fixed = splitting.operands(settings, denoiser, guide, schedule, None)
        return base.integrate(plan.step, fixed, plan.init(start), plan.rows, 100)[0].y, plan

    reference, _ = run(Settings("strang", "heun", conditional="flow"), 4000)
    print(
        f"| tau {_TAU.value:g}, scale {_SCALE.value:g} | "
        + " | ".join(f"{n} steps" for n in STEPS)
        + " | calls at 10 |"
    )
    print("|---" * (len(STEPS) + 2) + "|")
    for name in candidates(10):
        cells, calls = [], ""
        for n in STEPS:
            end, plan = run(candidates(n)[name], n)
            cells.append(f"{float(np.sqrt(np.mean((end - reference) ** 2))):.2g}")
            calls = f"{plan.nfe} + {plan.gradient_calls}" if n == 10 else calls
        print(f"| {name} | " + " | ".join(cells) + f" | {calls} |", flush=True)


if __name__ == "__main__":
    app.run(main)
