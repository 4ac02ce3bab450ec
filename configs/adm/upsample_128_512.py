"""ADM that enlarges ImageNet images from 128 to 512 px, told their classes.

    python main.py --config configs/adm/upsample_128_512.py --workdir W --checkpoint 128_512_upsampler.pt
        --config.data.low_res small_images/ --labels 3,7

Image i enlarges the i-th small image and is told the i-th label, in turn.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = methods.apply(families.adm_upsampler(512), method)
    config.model.attn_resolutions = (32, 16)
    return config
