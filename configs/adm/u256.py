"""ADM on ImageNet, unconditional, 256 px.

    python main.py --config configs/adm/u256.py --workdir W --checkpoint 256x256_diffusion_uncond.pt
    python main.py --config configs/adm/u256.py:class_conditional --workdir W --checkpoint 256x256_diffusion_uncond.pt
        --config.guidance.classifier 256x256_classifier.pt --labels 3,7 --method stsp2 --steps 20

Under guidance it draws any class; the classifier's scale is 10 as published.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = methods.apply(families.adm(256, ch_mult=(1, 1, 2, 2, 4, 4), num_classes=0), method)
    config.guidance.scale = 10.0
    return config
