"""--mode=prepare: a data set packed once, at the size of the config."""

from absl import logging

from builders.config import apply_overrides, resolve_config
from builders.latent import image_shape
from builders.training import data_source
from data import create_source, prepare
from modes.request import Request, workdir_of


def run(request: Request) -> None:
    """Packs config.data.source once, at the config's size, as a data set under W/data that needs no decoding."""
    config = resolve_config(request.config)
    apply_overrides(config, request.overrides)
    source = create_source(data_source(config))
    side, _, channels = image_shape(config)
    path = prepare.prepare(source, side, workdir_of(request) / "data", channels)
    logging.info("Wrote %s; use it as --config.data.source.", path)
