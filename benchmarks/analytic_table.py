"""PDS where the answer is known: a Gaussian with the spectrum of photographs, at 32, 256 and 1024 pixels.

python -m benchmarks.analytic_table --workdir out/analytic [--sizes 32,256,1024] [--sampled 32] [--pictures 256]

On a Gaussian every update is linear in x, so the variance of every frequency can be followed through the whole run
without drawing an image: P <- gain^2 P + noise^2, with the Langevin step from the norms that so many pixels have
(their relative spread is 1/sqrt(pixels)). `benchmarks.gaussian.variances` does that with the very rows the sampler
runs. `--sampled` draws images as well, at those sizes, to compare the figures with and to take seconds.

Columns are the iterations of the published figure (2000, 200, 133, 100, 66), two network calls each. Then the fewest
iterations at which a mode is as good as the plain sampler with 2000, or has an error of 5 %: the measured speed-up. A
run that is started again goes on from the rows in the work directory.
"""

import functools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

import run_lib
from benchmarks.gaussian import variances
from builders.analytic import natural_variance
from builders.model import create_sde
from builders.samplers import create_levels, create_preconditioner, predictor_corrector_settings
from configs.ve import analytic as analytic_config
from masks.estimate import rings
from metrics import spectrum
from precond.base import Identity
from precond.fourier import FrequencyPreconditioner
from reports import rows
from reports.grids import comparison_grid
from reports.images import write_png
from reports.plots import plot_spectra
from sampling import predictor_corrector

SIGMA_MAX = {32: 50.0, 64: 90.0, 128: 190.0, 256: 378.0, 1024: 1348.0}  # of the published models
SNR = {32: 0.16, 64: 0.17, 128: 0.17, 256: 0.075, 1024: 0.15}
ITERATIONS = (2000, 200, 133, 100, 66)
METHODS = {
    "vanilla": {"method": "pc"},
    "paper": {"method": "pds", "pds_mode": "paper"},
    "marginal": {"method": "pds", "pds_mode": "marginal"},
    "corrector_only": {"method": "pds", "pds_mode": "corrector_only"},
}
COLUMNS = {
    "size": "pixels",
    "method": "method",
    "iterations": "iterations",
    "spectrum_error": "spectrum error",
    "residual_noise": "residual noise",
    "sampled_error": "sampled: spectrum error",
    "sampled_noise": "residual noise ",
    "seconds": "seconds",
    "n": "n",
}
PICTURED = 128  # pixels of an image that the picture shows, from its middle: more would be shrunk on a page


def config_for(size: int, name: str, iterations: int) -> ConfigDict:
    config = analytic_config.get_config()
    config.model.update(components=1, residual=1.0)
    config.data.image_size = size
    config.sde.sigma_max = SIGMA_MAX[size]
    config.sampling.update(METHODS[name] | {"speed_up": config.sde.num_scales / iterations, "snr": SNR[size]})
    config.sampling.microbatch = max(1, min(16, 2**16 // size**2))
    return config


def final_variances(config: ConfigDict) -> np.ndarray:
    """The variance at each ring of frequencies after a run; one mode stands for all of its ring."""
    sde, shape = create_sde(config), (config.data.image_size, config.data.image_size, config.data.num_channels)
    levels, settings = create_levels(config, sde), predictor_corrector_settings(config)
    preconditioner = create_preconditioner(config, shape, levels)
    filtered = not isinstance(preconditioner, Identity)
    table = predictor_corrector.table(settings, sde, levels, filtered)
    data, first, count = ring_variances(shape)
    m = np.ones_like(data)
    if isinstance(preconditioner, FrequencyPreconditioner):
        m = np.asarray(preconditioner.freq, np.float64)[..., 0].reshape(-1)[first]
    prior = sde.prior_sigma**2 * (m**2 if filtered and settings.pds_mode == "paper" else np.ones_like(m))
    return variances(table, sde, prior, m, data, count)


@functools.lru_cache
def ring_variances(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the data at each ring; where a frequency of that ring stands in the plane; how many there are."""
    _, first, count = np.unique(rings(*shape[:2]), return_index=True, return_counts=True)
    return natural_variance(*shape)[..., 0].reshape(-1)[first], first, count


def exact_spectra(size: int, name: str, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Radial power [1, k] of the propagated variances and of the data, as metrics/spectrum.py has it."""
    radii = slice(0, size // 2 + 1)
    power = final_variances(config_for(size, name, iterations))
    return power[None, radii] * size**2, ring_variances((size, size, 3))[0][None, radii] * size**2


def exact_scores(size: int, name: str, iterations: int) -> dict[str, float]:
    """Spectrum error and residual noise of the propagated variances."""
    power, real = exact_spectra(size, name, iterations)
    return {
        "spectrum_error": spectrum.radial_power_error(power, real),
        "residual_noise": spectrum.residual_noise(power, real, size**2),
    }


def sampled_scores(size: int, name: str, iterations: int, count: int) -> dict[str, float]:
    """The same figures from images drawn by the toolkit, with the seconds that took after compilation."""
    config = config_for(size, name, iterations)
    model = run_lib.load(config)
    run_lib.sample(model, {"num_steps": 2}, range(count))
    start = time.perf_counter()
    images = run_lib.sample(model, {}, range(count)).images
    seconds = time.perf_counter() - start
    # Unclipped: images of a Gaussian leave [0, 1].
    power = spectrum.radial_average(np.abs(np.fft.fft2(np.moveaxis(images, -1, 1) - 0.5)) ** 2).mean(0)
    real = spectrum.radial_average(np.moveaxis(natural_variance(*model.shape) * size**2, -1, 0)[None])[0]
    return {
        "sampled_error": spectrum.radial_power_error(power, real),
        "sampled_noise": spectrum.residual_noise(power, real, size**2),
        "seconds": round(seconds, 1),
        "n": count,
    }


def fewest_iterations(size: int, name: str, target: float) -> int | None:
    """The fewest iterations, from 20 on a geometric ladder, whose spectrum error is no worse than `target`."""
    for iterations in np.unique(np.round(np.geomspace(20, 2000, 80)).astype(int)):
        if exact_scores(size, name, int(iterations))["spectrum_error"] <= target:
            return int(iterations)
    return None


def steps_needed(size: int, name: str, plain: float) -> dict[str, Any]:
    """Iterations to the error of the plain sampler with 2000, within a tenth of it, and to an error of 5 %."""
    row: dict[str, Any] = {"size": size, "method": name}
    for key, target in (("equal", 1.1 * plain), ("good", 0.05)):
        steps = fewest_iterations(size, name, target)
        row |= {key: steps or "never", f"{key}_gain": f"{2000 / steps:.1f}x" if steps else ""}
    return row


def picture(size: int, folder: Path) -> None:
    """One image a method and column, from equal noise, of the mixture of synthesised photographs."""
    drawn = {}
    for name in METHODS:
        columns = []
        for iterations in ITERATIONS:
            config = config_for(size, name, iterations)
            config.model.update(components=8, residual=0.3)
            model = run_lib.load(config)
            image = run_lib.to_pixels(model, run_lib.sample(model, {}, [0]).images)[0]
            edge = max(0, size - PICTURED) // 2
            columns.append(image[edge : size - edge, edge : size - edge])
            logging.info("%s, %d iterations", name, iterations)
        drawn[name] = np.stack(columns)
    headings = [f"{iterations} iterations" for iterations in ITERATIONS]
    shown = "" if size <= PICTURED else f", the middle {PICTURED} px"
    grid = comparison_grid(drawn, headings, f"{size} px{shown}, start noise equal")
    write_png(folder / f"analytic_{size}.png", grid)


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    folder = Path(flags.FLAGS.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    done = {(row["size"], row["method"], row["iterations"]): row for row in rows.read_rows(folder / "rows.jsonl")}
    context = {"machine": rows.machine(), "seed": 42, "checkpoint": "analytic", "command": " ".join(sys.argv[1:])}
    made: list[dict[str, Any]] = []
    reached: list[dict[str, Any]] = []
    for size in map(int, flags.FLAGS.sizes):
        for name in METHODS:
            for iterations in ITERATIONS:
                row: dict[str, Any] = done.get((size, name, iterations), {})
                if not row:
                    row = {"size": size, "method": name, "iterations": iterations, "n": 0}
                    row |= exact_scores(size, name, iterations)
                    if str(size) in flags.FLAGS.sampled:
                        row |= sampled_scores(size, name, iterations, flags.FLAGS.n)
                    rows.append_row(folder / "rows.jsonl", row | context)
                made.append(row)
                logging.info("%s", row)
        plain = next(row["spectrum_error"] for row in made if row["size"] == size)
        for name in METHODS:
            reached.append(steps_needed(size, name, plain))
            logging.info("%s", reached[-1])
        spectra = {name: exact_spectra(size, name, ITERATIONS[-1])[0] for name in METHODS}
        title = f"{size} px, {ITERATIONS[-1]} iterations"
        plot_spectra(folder / f"spectra_{size}.png", spectra, exact_spectra(size, "vanilla", 2)[1], "data", title)
    for size in map(int, flags.FLAGS.pictures):
        picture(size, folder)
    if flags.FLAGS.page:
        rows.replace_section(flags.FLAGS.page, "analytic_table", rows.markdown_table(made, COLUMNS))
        heads = {
            "size": "pixels",
            "method": "method",
            "equal": "as good as plain at 2000",
            "equal_gain": "speed-up",
            "good": "error of 5 %",
            "good_gain": "speed-up ",
        }
        rows.replace_section(flags.FLAGS.page, "analytic_steps", rows.markdown_table(reached, heads))


if __name__ == "__main__":  # the flags too: tests import two such programs into one process
    flags.DEFINE_string("workdir", "out/analytic", "Rows and pictures go here.")
    flags.DEFINE_list("sizes", ["32", "256", "1024"], "Pixels a side.")
    flags.DEFINE_list("sampled", ["32"], "Sizes at which images are drawn too.")
    flags.DEFINE_integer("n", 64, "Images drawn a row.")
    flags.DEFINE_list("pictures", [], "Sizes of five-column pictures.")
    flags.DEFINE_string("page", "", "Markdown page whose sections analytic_table and analytic_steps are rewritten.")
    app.run(main)
