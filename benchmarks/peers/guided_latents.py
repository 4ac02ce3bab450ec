"""Guided latent trajectories by diffusers' schedulers, for tests/goldens/latent/guided.json.

    python -m benchmarks.peers.guided_latents          # needs torch and diffusers; rewrites the file

Stable Diffusion's process and the loop of its pipeline, eps_null + 7.5 (eps - eps_null), from given latents, with a
network that is one formula.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent.parent / "tests" / "goldens" / "latent" / "guided.json"
SCALE = 7.5
# Scheduler, its settings, and the solver here with its own.
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}, "ddim", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {"solver_order": 2}, "dpmpp", {"order": 2}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}, "unipc", {"order": 2, "variant": "bh2"}),
    "dpmpp_v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, "dpmpp", {"order": 2}),
}


def output(x: Any, label: Any, context: Any, xp: Any = np) -> Any:
    """What the network says of x [b, h, w, c] at labels under contexts, [b, 1, 1, 1]; `xp`: numpy or jax.numpy."""
    return xp.tanh(0.8 * x + context) + 0.1 * xp.sin(label / 300) + 0.2 * context * x


def start() -> np.ndarray:
    """The latents that each begins with, standard normal, [1, 4, 4, 4]."""
    return np.random.default_rng(0).standard_normal((1, 4, 4, 4)).astype(np.float32)


def draw(name: str, steps: int = 8) -> dict[str, Any]:
    """Time steps and the last latents of diffusers' loop, float64 inside."""
    import diffusers
    import torch

    kind, settings, _, _ = CASES[name]
    process = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    scheduler = getattr(diffusers, kind)(**process, **settings)
    scheduler.set_timesteps(steps)
    x = start().astype(np.float64) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        null, said = (output(x, float(t), context) for context in (0.0, 0.4))
        moved = scheduler.step(torch.from_numpy(null + SCALE * (said - null)), t, torch.from_numpy(x))
        x = moved.prev_sample.numpy()
    return {
        "timesteps": [int(t) for t in scheduler.timesteps],
        "x": base64.b64encode(x.astype("<f4").tobytes()).decode(),
    }


def main() -> None:
    PAGE.write_text(json.dumps({name: draw(name) for name in CASES}, indent=1) + "\n")


if __name__ == "__main__":
    main()
