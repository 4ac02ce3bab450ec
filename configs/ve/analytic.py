"""A closed-form model without weights, exact at any size: what samplers do at high resolution, without a checkpoint.

    python main.py --config configs/ve/analytic.py --workdir W --speed_up 30 --config.data.image_size 1024

Its components are synthesised natural spectra; `--config.data.source photographs/` takes yours instead.
"""

from ml_collections import ConfigDict

from configs import base, methods


def get_config(method: str = "") -> ConfigDict:
    config = base.get_config()
    config.sde.update(sigma_max=378.0, num_scales=2000)
    config.model.update(name="analytic", components=8, residual=0.3, predicts="x0")
    config.data.image_size = 256
    config.sampling.update(speed_up=10.0, freq_mask_path="natural", alpha=5.0, snr=0.075, microbatch=1)
    config.eval.update(num_samples=4, batch_size=4, compare="pc")
    return methods.apply(config, method)
