"""Stable Diffusion 2.x: text by OpenCLIP ViT-H/14, of which the last layer but one is looked at. 865.9 M parameters.

    python main.py --config configs/latent/sd2.py --workdir W --checkpoint v2-1_768.ckpt --prompts prompts.txt
    python main.py --config configs/latent/sd2.py:base --workdir W --checkpoint v2-1_512.ckpt --prompts prompts.txt

The models at 768 px predict v; `:base` is the one at 512 px, which predicts eps. No tensor tells them apart.
"""

from ml_collections import ConfigDict

from configs import latent_families, methods

BASE = "base"


def get_config(method: str = "") -> ConfigDict:
    size, predicts = (512, "eps") if method == BASE else (768, "v")
    config = latent_families.stable_diffusion(size, context=1024, heads=(5, 10, 20, 20), predicts=predicts)
    config.latent.text.update(num_layers=23, num_heads=16, mlp_width=4096, act="gelu")
    return methods.apply(config, "" if method == BASE else method)
