"""A latent model trained here: photographs of flowers, 64 px, as latents of 16 x 16 x 4 (docs/latent.md).

python main.py --mode=train --config configs/latent/flowers64.py:autoencoder --workdir W --data flowers.zip
python main.py --mode=train --config configs/latent/flowers64.py --workdir W --data flowers.zip
python main.py --config configs/latent/flowers64.py --workdir W --checkpoint W/checkpoints/model.safetensors
"""

from ml_collections import ConfigDict

from configs import trained_here


def get_config(method: str = "") -> ConfigDict:
    config = trained_here.get_config()
    config.checkpoint = "demo/latent64.safetensors"
    config.sde.update(name="vesde", sigma_min=0.01, sigma_max=50.0)
    config.data.update(image_size=16, num_channels=4, centered=True)
    config.latent.update(
        kind="kl",
        scale_factor=0.0,  # measured on the photographs, and in the file of the weights
        channels=4,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        mid_attention=False,
    )
    config.autoencoder.kl_weight = 1e-2
    # Latents have unit variance, where images in [-1, 1] have about a quarter of it.
    config.model.update(ch_mult=(1, 2, 2), attn_resolutions=(8,), sigma_data=1.0)
    config.sampling.update(method="unipc", num_steps=10, freq_mask_path="demo/latent64_freq.npy", speed_up=20.0)
    config.sampling.schedule = "demo/latent64_{method}_{steps}.json"
    config.guidance.data_std = 1.0
    config.training.update(num_steps=1000, lognormal_mean=-0.4, ema_rate=0.998, sample_every=500)
    return trained_here.with_method(config, method, {"autoencoder": _codec})


def _codec(config: ConfigDict) -> ConfigDict:
    config.training.update(
        batch_size=8, num_steps=1400, ema_rate=0.995, log_every=20, sample_every=400, checkpoint_every=100
    )
    config.optim.update(lr=1e-3, warmup=100, schedule="cosine")
    return config
