"""config.sampling.compat: samplers of published distillation programs in the place of DDIM, to compare with them."""

import numpy as np
from ml_collections import ConfigDict

from builders.grids import prior_scale
from builders.model import Model
from sampling import published_distillation as published
from sampling.base import Sampler, TimeGrid
from sampling.denoising import Denoiser

SAMPLERS = ("posterior", "clipped")
METHODS = ("ddim", "distilled")


def create(model: Model, config: ConfigDict, denoiser: Denoiser, grid: TimeGrid, record: bool) -> Sampler | None:
    """The sampler of config.sampling.compat on `grid`, N NFE; None where it names none.

    Raises ValueError for an unknown one, another method than DDIM's, and for clipped noise of images not in [-1, 1].
    """
    compat, method = config.sampling.compat, config.sampling.method
    if not compat.sampler:
        return None
    where = f"config.sampling.compat.sampler={compat.sampler!r}"
    if compat.sampler not in SAMPLERS:
        raise ValueError(f"{where} is unknown; choose one of {SAMPLERS}, or '' for none.")
    if method not in METHODS:
        raise ValueError(f"{where} stands in the place of DDIM, and --method={method} is none of {METHODS}.")
    prior, alpha = prior_scale(model.sde, grid), _alpha(model, grid)
    if compat.sampler == "posterior":
        posterior = published.ancestral(grid, alpha, compat.variance)
        return published.create_ancestral(posterior, denoiser, model.shape, prior, record)
    if not config.data.centered:
        raise ValueError(f"{where} is for images in [-1, 1], and those of this model are in {model.data_range}.")
    rows = published.clipped(grid, alpha, compat.eta)
    return published.create_clipped(rows, compat.limit, denoiser, model.shape, prior, record)


def _alpha(model: Model, grid: TimeGrid) -> np.ndarray:
    """Of the process at the grid's points, [N + 1]; 1 where no noise is left."""
    s = np.asarray(grid.s, np.float64)
    times = model.sde.time(np.where(s > 0, s, s[0]))
    return np.where(s > 0, np.asarray(model.sde.alpha(times), np.float64), 1.0)
