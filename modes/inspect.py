"""--mode=inspect: what is in a weight file, whether the network of a config fits it, and whether it denoises."""

import copy
from collections.abc import Mapping, Sequence

import checkpoints
from builders import sanity
from builders.config import load_config_file, resolve_config
from builders.model import Model, create_denoiser, find_checkpoint, load, named_tensors, read_params
from builders.suggest import answer, fitting_configs
from checkpoints import fitting
from checkpoints import inspect as inspection
from configs import base as base_config
from models import sanity as conventions
from modes.request import Request


def run(request: Request) -> None:
    """Says what is in a weight file; with a config, its own or a given one, whether its network fits and denoises.

    --dry_run leaves out the last, for which the network is compiled and run.
    """
    config = None if request.config is None else resolve_config(request.config)
    if config is not None and (config.model.factory or config.model.name == "analytic"):
        model = load(config, request.checkpoint, workdir=request.workdir)
        print(f"{config.model.factory or config.model.name}: {model.num_params:,} parameters, images {model.shape}")
        if not request.dry_run:
            print(sanity.check(model).report())
        return
    stored = checkpoints.read(find_checkpoint(config or base_config.get_config(), request.workdir, request.checkpoint))
    print(inspection.describe(stored))
    recorded = resolve_config(None, stored) if stored.config is not None else None
    config = config or recorded
    if config is None:
        found = fitting_configs(stored, lambda config: fitting.compare(*named_tensors(stored, config)).fits())
        print(f"\n{answer(stored, found)}")
        if len(found) > 1 and not request.dry_run:
            print(f"\n{which(stored, found)}")
        return
    differences = fitting.compare(*named_tensors(stored, config))
    verdict = "fits." if differences.fits() else f"does not fit:\n{differences.report()}"
    print(f"\nThe network of the config {verdict}")
    if differences.fits() and not request.dry_run and sanity.can_check(config):
        model = Model(create_denoiser(config, read_params(stored, config)), config)
        other = copy.deepcopy(config)
        other.model.ema = not config.model.ema
        other_weights = read_params(stored, other) if stored.ema is not None else None
        print(sanity.check(model, other_weights, recorded).report())


def which(stored: checkpoints.Checkpoint, found: Sequence[str]) -> str:
    """The configs that fit a file, with how well its network denoises under each, the best first; three calls each."""
    ratios: dict[str, float] = {}
    for path in found:
        config = resolve_config(load_config_file(path))
        if sanity.can_check(config):
            ratios[path] = sanity.declared(Model(create_denoiser(config, read_params(stored, config)), config)).ratio
    return ranking(ratios, str(stored.path)) if ratios else "None of them can be looked at with a synthetic picture."


def ranking(ratios: Mapping[str, float], checkpoint: str) -> str:
    """Configs by the noise that is left under each, and what to do next."""
    ordered = sorted(ratios.items(), key=lambda item: item[1])
    lines = [f"{ratio:12.2f}  {path}" for path, ratio in ordered]
    heading = f"Noise left of a synthetic picture under each; above {conventions.FAILED:g} it does not denoise:"
    best, least = ordered[0]
    after = f"python main.py --config {best} --checkpoint {checkpoint} --workdir W --method unipc --steps 10"
    if least > conventions.FAILED:
        after = (
            "It denoises under none of them: its weights are untrained or damaged, or it was trained otherwise than "
            "any of these says. If you have the config that it was trained with: --config THAT_FILE."
        )
    return "\n".join([heading, *lines, "", after])
