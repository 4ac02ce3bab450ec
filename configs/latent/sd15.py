"""Stable Diffusion 1.x: 512 px, text by CLIP ViT-L/14, predicts eps. 859.5 M parameters, codec 83.7 M, text 123.1 M.

    python main.py --config configs/latent/sd15.py --workdir W --checkpoint v1-5-pruned.ckpt --prompts prompts.txt

A diffusers folder brings its own config. The files of versions 1.1 to 1.5 have one architecture.
"""

from ml_collections import ConfigDict

from configs import latent_families, methods


def get_config(method: str = "") -> ConfigDict:
    return methods.apply(latent_families.stable_diffusion(512, context=768, heads=8, predicts="eps"), method)
