"""ADM on ImageNet, class-conditional, 512 px.

    python main.py --config configs/adm/c512.py --workdir W --checkpoint 512x512_diffusion.pt --labels 3,7
    python main.py --config configs/adm/c512.py:class_conditional --workdir W --checkpoint 512x512_diffusion.pt
        --config.guidance.classifier 512x512_classifier.pt --labels 3,7 --method stsp2 --steps 20

Published: FID 7.72 (guided-diffusion README, 250 steps); 3.85 by enlarging 128 px.
The classifier's scale is 4.0 there and 9 in the splitting paper's program.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = methods.apply(families.adm(512, ch_mult=(0.5, 1, 1, 2, 2, 4, 4)), method)
    config.guidance.scale = 9.0
    return config
