"""For a weight file without an architecture: the shipped configs whose networks have exactly its tensors."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

import checkpoints
from builders.config import load_config_file

CONFIGS = Path(__file__).parent.parent / "configs"
_SCORE_SDE = ("ncsnpp", "ddpm", "ncsnv2_64")
# Networks that the program which writes a format has; others are not tried.
_NETWORKS = {"openai_torch": ("adm",), "compvis": ("adm",), "diffusers": ()}


def fitting_configs(stored: checkpoints.Checkpoint, fits: Callable[[ConfigDict], bool]) -> list[str]:
    """Paths of the shipped configs whose network takes the file, in alphabetical order.

    fits: whether the network of a config has the tensors of the file (ValueError: it has not). It takes a second, so it
      is asked once for each network, and only where the file has a first layer of its width.
    """
    logging.info("%s does not carry its architecture; looking for configs that fit, up to a minute.", stored.path)
    verdicts: dict[str, bool] = {}
    found = []
    layers = {tuple(sorted(tensor.shape)) for tensor in stored.raw.values()}
    for path, config in _shipped():
        if config.model.name not in _NETWORKS.get(stored.format, _SCORE_SDE) or _first_layer(config) not in layers:
            continue
        network = f"{config.model} {config.data.image_size} {config.data.num_channels} {config.data.num_classes}"
        if network not in verdicts:
            try:
                verdicts[network] = fits(config)
            except ValueError:
                verdicts[network] = False
        if verdicts[network]:
            found.append(path)
    return found


def _first_layer(config: ConfigDict) -> tuple[int, ...]:
    """Shape of the first convolution, sorted: files differ in the order of its axes."""
    model, channels = config.model, config.data.num_channels
    width = int(model.nf * model.ch_mult[0]) if model.name == "adm" else model.nf
    return tuple(sorted((3, 3, 2 * channels if model.super_resolution else channels, width)))


def _shipped() -> Iterator[tuple[str, ConfigDict]]:
    for path in sorted(CONFIGS.glob("*/**/*.py")):
        yield str(path.relative_to(CONFIGS.parent)), load_config_file(path)


def question(stored: checkpoints.Checkpoint, fits: Callable[[ConfigDict], bool]) -> str:
    """What to tell the user of a file that needs --config."""
    return answer(stored, fitting_configs(stored, fits))


def answer(stored: checkpoints.Checkpoint, found: Sequence[str]) -> str:
    """The same, of the configs that fit."""
    if not found:
        return (
            f"{stored.path} does not carry its architecture, and no shipped config has its tensors; name your own with "
            "--config (--mode=inspect shows what the file holds)."
        )
    which = " --mode=inspect says which of them the network denoises under." if len(found) > 1 else ""
    return f"{stored.path} does not carry its architecture; these configs fit it: --config {', '.join(found)}.{which}"
