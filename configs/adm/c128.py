"""ADM on ImageNet, class-conditional, 128 px.

    python main.py --config configs/adm/c128.py --workdir W --checkpoint 128x128_diffusion.pt --labels 3,7
    python main.py --config configs/adm/c128.py:class_conditional --workdir W --checkpoint 128x128_diffusion.pt
        --config.guidance.classifier 128x128_classifier.pt --labels 3,7 --method stsp2 --steps 20

Published: FID 2.97 (guided-diffusion README, 250 steps).
The classifier's scale is 0.5 there and 1.25 in the splitting paper's program.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = methods.apply(families.adm(128, ch_mult=(1, 1, 2, 3, 4)), method)
    config.model.update(num_head_channels=-1, num_heads=4)
    config.guidance.scale = 1.25
    return config
