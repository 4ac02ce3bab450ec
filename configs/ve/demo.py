"""The demo: an NCSN++ of photographs of flowers, 32 px, trained by this code on two CPU cores.

./run sample
python main.py --config configs/ve/demo.py --workdir out/demo
python main.py --config configs/ve/demo.py --workdir out/train --mode train --config.data.source flowers.zip
"""

from ml_collections import ConfigDict

from configs import base, methods


def get_config(method: str = "") -> ConfigDict:
    config = base.get_config()
    config.checkpoint = "demo/flowers32.safetensors"
    config.model.update(nf=32, num_res_blocks=2, fourier_scale=1.0, dropout=0.0)
    config.eval.update(num_samples=16, batch_size=16)
    config.training.update(
        batch_size=32, num_steps=200_000, log_every=100, sample_every=2000, checkpoint_every=2000, ema_rate=0.999
    )
    config.optim.update(lr=1e-3, warmup=1000)
    return methods.apply(config, method)
