"""The published command line on a network of published width with random weights: does it run, in how much memory?

python -m benchmarks.full_width --workdir out/full_width [--model_config configs/...] [--levels 2]

Writes W/checkpoints/checkpoint.pth as the published trainer saves it (network, averages, optimiser, step; the extra
`torch` is needed for this alone), two masks, and runs main.py in a process of its own. The images are noise: the
weights are random. Prints the seconds and the peak memory of that process.
"""

import collections
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags

import models
import run_lib
from benchmarks.random_weights import random_weights
from builders.model import create_network
from checkpoints import fitting, names
from masks.files import write_mask

_WORKDIR = flags.DEFINE_string("workdir", "out/full_width", "The checkpoint, the masks and the image go here.")
_CONFIG = flags.DEFINE_string("model_config", "configs/ve/ffhq_ncsnpp_continuous.py", "The model.")
_LEVELS = flags.DEFINE_integer("levels", 2, "Noise levels to run, two network calls each.")


def write_checkpoint(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """{"optimizer", "model", "ema", "step"}, the model's names behind DataParallel's prefix."""
    import torch

    model = collections.OrderedDict(
        ("module." + name, torch.from_numpy(np.ascontiguousarray(value))) for name, value in tensors.items()
    )
    # The random Fourier frequencies are not trained, so the averages skip them.
    averages = [value for name, value in model.items() if name != "module.all_modules.0.W"]
    ema = {"decay": 0.999, "num_updates": 1, "shadow_params": averages}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "model": model, "ema": ema, "step": 1}, path)


def main(argv: list[str]) -> None:
    del argv
    folder, config = Path(_WORKDIR.value), run_lib.load_config_file(_CONFIG.value)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    module = create_network(config)
    path = folder / "checkpoints" / "checkpoint.pth"
    if not path.exists():
        shapes = fitting.shapes(models.param_shapes(module, shape))
        order = models.structure(module, shape).order
        tensors = names.torch_names(random_weights(dict(shapes)), order)
        # The averages are a list in the order of the modules.
        ordered = sorted(tensors, key=lambda name: int(name.split(".")[1]))
        write_checkpoint(path, {name: tensors[name] for name in ordered})
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(shape[0]) * shape[0]] * 2))
    power = np.broadcast_to(np.log1p(1e6 / (1 + radius) ** 2)[..., None], shape)
    write_mask(folder / "freq.npy", power, {"made": "benchmarks/full_width.py"})
    write_mask(folder / "space.npy", np.full(shape, 0.3), {"made": "benchmarks/full_width.py"})
    command = [sys.executable, "main.py", "--config", _CONFIG.value, "--workdir", str(folder)]
    command += [f"--speed_up={config.sde.num_scales / _LEVELS.value:g}", "--num_samples=1"]
    command += ["--freq_mask_path", str(folder / "freq.npy"), "--space_mask_path", str(folder / "space.npy")]
    start = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")})
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # KiB on Linux
    print(f"{' '.join(command[1:])}\n{seconds:.0f} s with compilation, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    app.run(main)
