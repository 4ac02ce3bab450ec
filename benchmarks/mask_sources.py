"""What a frequency mask from elsewhere costs against the mask of the training images, for the demo.

python -m benchmarks.mask_sources --data flowers128.zip --drawn W/masks/freq.npy [--page docs/methods/masks.md]

`--drawn` is what `--mode=masks --config configs/ve/demo.py --from_model 64` wrote. The masks are compared as
multipliers (alpha 5), and by what the sampler makes with them of a Gaussian that has the spectrum of the training
images: its final variances are known without sampling (benchmarks/gaussian.py), so that no noise of a score hides small
differences.
"""

import copy
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks.gaussian import variances
from builders.config import shipped
from builders.model import create_sde
from builders.samplers import create_levels, create_preconditioner, predictor_corrector_settings
from configs.ve import demo
from data import create_source
from masks.estimate import collect, masks_from, stream
from masks.files import read_mask, write_mask
from metrics import spectrum
from precond.fourier import FrequencyPreconditioner
from reports import rows
from sampling import predictor_corrector

_DATA = flags.DEFINE_string("data", None, "Training images of the demo.", required=True)
_DRAWN = flags.DEFINE_string("drawn", None, "Mask of images that the demo drew itself.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "out/mask_sources", "Masks made here go there.")
_PAGE = flags.DEFINE_string("page", "", "Markdown page whose section mask_sources is rewritten.")

SHAPE = (32, 32, 3)
LEVELS = (50, 100)
COLUMNS = {
    "source": "mask from",
    "gap": "multipliers off by",
    **{f"{mode}_{levels}": f"{mode}, {levels} levels" for mode in ("marginal", "paper") for levels in LEVELS},
}


def multipliers(config: ConfigDict, levels: int) -> np.ndarray:
    """M of the config at each frequency, [32, 32, 3]; ones without a mask."""
    m = create_preconditioner(config, SHAPE, create_sde(config).levels(levels, 1e-5))
    return np.asarray(m.freq, np.float64) if isinstance(m, FrequencyPreconditioner) else np.ones(SHAPE)


def spectrum_error(config: ConfigDict, data: np.ndarray) -> float:
    """Of a Gaussian with variances `data` at each frequency, after the run that the config describes."""
    sde, settings = create_sde(config), predictor_corrector_settings(config)
    levels = create_levels(config, sde)
    m = multipliers(config, len(levels.t))
    filtered = bool(config.sampling.freq_mask_path)
    table = predictor_corrector.table(settings, sde, levels, filtered)
    start = sde.prior_sigma**2 * (m**2 if filtered and settings.published else np.ones(SHAPE))
    final = variances(table, sde, start, m, data, np.ones(SHAPE))
    made, real = (spectrum.radial_average(np.moveaxis(power, -1, 0)[None])[0] * 1024 for power in (final, data))
    return spectrum.radial_power_error(made, real)


def main(argv: list[str]) -> None:
    del argv
    few = Path(_WORKDIR.value) / "freq_200.npy"
    write_mask(few, masks_from(collect(stream(create_source(_DATA.value), 32, 3, 200))).freq, {"n": 200})
    base = demo.get_config()
    sources = {
        "3,303 training images": base.sampling.freq_mask_path,
        "200 of the images": str(few),
        "64 images of the model's own": _DRAWN.value,
        "`natural`": "natural",
        "`power:2.0`": "power:2.0",
        "none": "",
    }
    true = read_mask(shipped(base.sampling.freq_mask_path), "freq", SHAPE)
    data = np.expm1(true) / 1024
    data[0, 0] = data[0, 1]  # about the mean
    made, reference = [], multipliers(base, 50)
    for name, path in sources.items():
        config = copy.deepcopy(base)
        config.sampling.freq_mask_path = path
        row = {"source": name, "gap": float(np.sqrt(np.mean(np.log(multipliers(config, 50) / reference) ** 2)))}
        for mode in ("marginal", "paper"):
            for levels in LEVELS:
                config.sampling.update(pds_mode=mode, num_steps=levels)
                row[f"{mode}_{levels}"] = spectrum_error(config, data)
        made.append(row)
    table = rows.markdown_table(made, COLUMNS)
    print(table)
    if _PAGE.value:
        rows.replace_section(_PAGE.value, "mask_sources", table)


if __name__ == "__main__":
    app.run(main)
