"""ADM that enlarges ImageNet images from 64 to 256 px, told their classes.

    python main.py --config configs/adm/upsample_64_256.py --workdir W --checkpoint 64_256_upsampler.pt
        --config.data.low_res small_images/ --labels 3,7

Image i enlarges the i-th small image and is told the i-th label, in turn.
"""

from ml_collections import ConfigDict

from configs import families, methods


def get_config(method: str = "") -> ConfigDict:
    config = methods.apply(families.adm_upsampler(256), method)
    config.model.update(num_head_channels=-1, num_heads=4)
    return config
