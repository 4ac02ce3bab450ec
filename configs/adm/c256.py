"""ADM on ImageNet, class-conditional, 256 px.

    python main.py --config configs/adm/c256.py --workdir W --checkpoint 256x256_diffusion.pt --labels 3,7
    python main.py --config configs/adm/c256.py:class_conditional --workdir W --checkpoint 256x256_diffusion.pt
        --config.guidance.classifier 256x256_classifier.pt --labels 3,7 --method stsp2 --steps 20

Published: FID 4.59 (guided-diffusion README, 250 steps); 3.94 by enlarging 64 px.
The classifier's scale is 1.0 there and 2.5 in the splitting paper's program.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = methods.apply(families.adm(256, ch_mult=(1, 1, 2, 2, 4, 4)), method)
    config.guidance.scale = 2.5
    return config
