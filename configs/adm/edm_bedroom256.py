"""An ADM network under EDM's scaling: LSUN bedroom, 256 px, of the consistency models' release.

    python main.py --config configs/adm/edm_bedroom256.py --workdir W --checkpoint edm_bedroom256_ema.pt

The network is told 250 log sigma. The file shows neither its attention order (all queries first is what that program's
attention does) nor its sampler; EDM's is the default here.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = families.adm_lsun()
    config.sde.update(name="edmsde", sigma_min=0.002, sigma_max=80.0)
    config.model.update(
        predicts="x0",
        scaling="edm",
        scaling_label="1000c_noise",
        learn_sigma=False,
        use_scale_shift_norm=False,
        use_new_attention_order=True,
    )
    config.sampling.update(method="heun", num_steps=40, grid="edm", threshold="none")
    return methods.apply(config, method)
