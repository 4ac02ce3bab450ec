"""The sanity gate on a loaded model: which of all settings of its config makes it denoise."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from builders.analytic import natural_fields, natural_variance
from builders.latent import is_latent
from builders.model import Model, create_denoiser
from models import edm, sanity
from models.sanity import Convention, Judged, Verdict

RANGES = ((0.0, 1.0), (-1.0, 1.0))
SMALL = 64 * 64  # pixels of an image up to which four pictures are looked at, above it one
OUR_SCALINGS = ("none", "edm")  # tried besides the declared one
MADE = ("own", "analytic")  # config.model.name of networks that no config describes


def check(model: Model, other_weights: Any = None, recorded: ConfigDict | None = None) -> Verdict:
    """Whether `model` denoises as its config says, and if not, which prediction, time convention, range, scaling or
    weights makes it.

    Args:
      other_weights: the parameters that config.model.ema did not choose, where the file has two sets.
      recorded: the config that the weight file carries; it is right where another does as well.

    Costs three network calls for the declared settings, of four images (one above 64 pixels), three for the other data
    range, for other weights and for the recorded config, and, where the network is not clearly good then, three more
    for each other way to feed it.
    """
    pictures = _pictures(model, 4)
    declared = _declared(model, len(pictures))
    verdict = sanity.look(declared, _near(model, declared), pictures)
    if not (verdict.right and verdict.declared.ratio < sanity.GOOD):
        verdict = sanity.look(declared, _all(model, declared), pictures)
    if recorded is not None and verdict.denoises and (other := _as_recorded(model, declared, recorded)):
        judged = sanity.judge(other, pictures)
        if judged.ratio <= sanity.ALIKE * verdict.best.ratio:
            verdict = verdict._replace(best=judged)
    return verdict if other_weights is None else _with_weights(model, verdict, other_weights)


def declared(model: Model) -> Judged:
    """How well `model` denoises as its config says; three network calls of four images (one above 64 pixels)."""
    pictures = _pictures(model, 4)
    return sanity.judge(_declared(model, len(pictures)), pictures)


def warning(model: Model) -> str:
    """What to say before a long run of a network that does not denoise as its config says; "" of one that does.

    Costs what `declared` does.
    """
    judged = declared(model)
    if judged.ratio <= sanity.FAILED:
        return ""
    return (
        "This network does not denoise as its config says, so its images will be noise or dim; noise left, by noise "
        f"scale in units of black to white: {judged.summary()}. --mode=inspect with the same flags finds what is wrong."
    )


def _pictures(model: Model, count: int) -> np.ndarray:
    """Synthetic photographs in [0, 1] of the model's shape; a quarter as many above `SMALL`."""
    count = count if model.shape[0] * model.shape[1] <= SMALL else count // 4
    return natural_fields(count, natural_variance(*model.shape), seed=0).astype(np.float32)


def _with_weights(model: Model, verdict: Verdict, params: Any) -> Verdict:
    """The verdict after a look at the other weights, under the declared convention and then under the best.

    Averaged weights win unless they are worse, raw ones only if they are clearly better: how far an average is ahead
    differs too much between pictures to be settled by a few, while samples drawn with it are better as a rule.
    """
    factor = sanity.CLEAR if model.config.model.ema else sanity.ALIKE
    said = {"ema": _say("ema", str(not model.config.model.ema))}
    for convention in (verdict.declared.convention, verdict.best.convention):
        other = dataclasses.replace(convention.denoiser, params=params)
        judged = sanity.judge(convention._replace(denoiser=other, words=convention.words | said), _pictures(model, 4))
        if judged.ratio <= factor * verdict.best.ratio:
            return verdict._replace(best=judged)
    return verdict


def _as_recorded(model: Model, declared: Convention, recorded: ConfigDict) -> Convention | None:
    """The convention of the file's own config, or None where the model's says the same."""
    found = {key: value for key, value in _facts(recorded).items() if value != _facts(model.config)[key]}
    if not found:
        return None
    config = copy.deepcopy(model.config)
    config.update_from_flattened_dict(found)
    other = _rebuilt(model, declared, config)
    said = {key: f"--config.{key}={value}" for key, value in found.items()}
    return other._replace(words=declared.words | said)


def _facts(config: ConfigDict) -> dict[str, Any]:
    """What a config says of the process and of the conventions of the network."""
    keys = [f"sde.{key}" for key in config.sde] + ["data.centered"]
    keys += [f"model.{key}" for key in ("continuous", "scaling", "scaling_label", "sigma_data", "predicts", "told")]
    return {key: config[key.split(".")[0]][key.split(".")[1]] for key in keys}


def can_check(config: ConfigDict) -> bool:
    """False for a network that enlarges images, which does not work without the small one, and for one of latents."""
    return not config.model.super_resolution and not is_latent(config)


def _say(name: str, value: str) -> str:
    key = {"centered": "data.centered", "data_range": "data.range"}.get(name, f"model.{name}")
    return f"--config.{key}={value}"


def _say_own(name: str, value: str) -> str:
    """For networks of one's own: the argument of `Model.from_function`."""
    return f"{name}={value}" if name == "data_range" else f'{name}="{value}"'


def _conditions(model: Model, count: int) -> dict[str, Any]:
    classes = model.config.data.num_classes
    return {"classes": jnp.arange(count) % classes} if classes else {}


def _declared(model: Model, count: int) -> Convention:
    denoiser, config = model.denoiser.given(**_conditions(model, count)), model.config
    words = {"ema": _say("ema", str(config.model.ema))}
    if config.model.name in MADE:
        words = {"data_range": _say_own("data_range", str(model.data_range))}
        say = _say_own
    else:
        words |= _words(config)
        say = _say
    words |= {"predicts": say("predicts", denoiser.predicts), "told": say("told", denoiser.told)}
    return Convention(sanity.compiled(denoiser), model.data_range, words)


def _words(config: ConfigDict) -> dict[str, str]:
    words = {"centered": _say("centered", str(config.data.centered)), "scaling": _say("scaling", config.model.scaling)}
    if config.model.scaling != "none":
        words["scaling_label"] = _say("scaling_label", config.model.scaling_label)
    return words


def _in_range(model: Model, declared: Convention, data_range: tuple[float, float]) -> Convention:
    """The declared convention in another data range."""
    if model.config.model.name in MADE:
        said = {"data_range": _say_own("data_range", str(data_range))}
        return declared._replace(data_range=data_range, words=declared.words | said)
    config = copy.deepcopy(model.config)
    config.data.centered, config.data.range = data_range == RANGES[1], ()
    return _rebuilt(model, declared, config)


def _rebuilt(model: Model, declared: Convention, config: ConfigDict) -> Convention:
    denoiser = create_denoiser(config, model.denoiser.params)
    denoiser = dataclasses.replace(denoiser, conditions=declared.denoiser.conditions)
    data_range = RANGES[int(config.data.centered)]
    return Convention(sanity.compiled(denoiser), data_range, declared.words | _words(config))


def _near(model: Model, declared: Convention) -> Iterator[Convention]:
    """What asks little: every prediction, and the other ranges."""
    say = _say_own if model.config.model.name in MADE else _say
    for other in sanity.variations(declared, say):
        if other.denoiser.told == declared.denoiser.told:
            yield other
    for data_range in RANGES:
        if data_range != declared.data_range:
            yield _in_range(model, declared, data_range)


def _all(model: Model, declared: Convention) -> Iterator[Convention]:
    """Every combination of range, scaling, what the network is told and what it predicts."""
    if model.config.model.name in MADE:
        for data_range in dict.fromkeys((declared.data_range, *RANGES)):
            yield from sanity.variations(_in_range(model, declared, data_range), _say_own)
        return
    yield from sanity.variations(declared, _say)
    for centered in (False, True):
        for scaling in dict.fromkeys((*OUR_SCALINGS, model.config.model.scaling)):
            for label in edm.LABELS if scaling != "none" else ("",):
                config = copy.deepcopy(model.config)
                config.data.centered, config.data.range, config.model.scaling = centered, (), scaling
                config.model.told, config.model.scaling_label = "", label or config.model.scaling_label
                yield from sanity.variations(_rebuilt(model, declared, config), _say)
