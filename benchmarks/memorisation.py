"""Does the model repeat its training images? Nearest neighbours of samples, against those of held-out photographs.

python -m benchmarks.memorisation --data flowers128.zip [--n 128] [--picture out/neighbours.png]

`closer` is the share of samples nearer to the training set than the median held-out image (0.5 if nothing was copied),
`copies` the share nearer than its first percentile (0.01 then).
"""

import numpy as np
from absl import app, flags

import run_lib
from data import create_source
from data.pipeline import load_images
from metrics import nearest
from reports.grids import comparison_grid
from reports.images import write_png

_CONFIG = flags.DEFINE_string("model_config", "configs/ve/demo.py", "The model.")
_DATA = flags.DEFINE_string("data", None, "The images that it was trained on, all of them.", required=True)
_N = flags.DEFINE_integer("n", 128, "Samples.")
_PICTURE = flags.DEFINE_string("picture", "", "Write samples above their nearest training images here.")


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    model = run_lib.load(_CONFIG.value)
    data = model.config.data
    images, _ = load_images(create_source(_DATA.value), data.image_size, data.num_channels)
    held_out = np.arange(len(images)) % data.holdout == 0
    drawn = run_lib.sample(model, {"method": "heun", "num_steps": 10}, range(_N.value))
    samples = run_lib.to_pixels(model, drawn.images)
    result = nearest.memorisation(samples, images[~held_out], images[held_out])
    print(f"n {_N.value}, {drawn.nfe} calls: closer {result.closer:.3f}, copies {result.copies:.3f}")
    if _PICTURE.value:
        neighbours = nearest.nearest_neighbours(samples[:8], images[~held_out], count=1)
        found = images[~held_out][neighbours.indices[:, 0]]
        write_png(_PICTURE.value, comparison_grid({"sample": samples[:8], "nearest photograph": found}))


if __name__ == "__main__":
    app.run(main)
