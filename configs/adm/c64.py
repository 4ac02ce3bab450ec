"""ADM on ImageNet, class-conditional, 64 px.

    python main.py --config configs/adm/c64.py --workdir W --checkpoint 64x64_diffusion.pt --labels 3,7
    python main.py --config configs/adm/c64.py:class_conditional --workdir W --checkpoint 64x64_diffusion.pt
        --config.guidance.classifier 64x64_classifier.pt --labels 3,7 --method stsp2 --steps 20

Published: FID 2.07 (guided-diffusion README, 250 steps).
The classifier's scale is 1.0 there and 0.1 in the splitting paper's program.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = methods.apply(families.adm(64, ch_mult=(1, 2, 3, 4), schedule="cosine"), method)
    config.model.update(nf=192, num_res_blocks=3, use_new_attention_order=True, dropout=0.1)
    config.classifier.num_res_blocks = 4
    config.guidance.scale = 0.1
    return config
