"""A network of your own: what docs/your_own_network.md samples with.

python main.py --config configs/own.py --config.model.factory=my_net.py:make_model --workdir out/own
python main.py --config configs/own.py:pc --config.model.factory=my_net.py:make_model --workdir out/own_pc

The process, the images and what the network predicts come from the file; `config.sde`, `config.data.image_size` and
`config.model.predicts` are set by it. Everything else can be changed here.
"""

from ml_collections import ConfigDict

from configs import base, methods


def get_config(method: str = "") -> ConfigDict:
    config = base.get_config()
    config.model.name = "own"
    config.sampling.update(method="heun", num_steps=18)
    config.eval.update(num_samples=16, batch_size=16)
    if method in ("pc", "pds"):
        config.sampling.num_steps = 200
    return methods.apply(config, method)
