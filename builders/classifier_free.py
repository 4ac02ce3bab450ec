"""config.guidance.cfg_scale: the network's own null condition, and the true count of its calls."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from ml_collections import ConfigDict

from array_types import Image, PerImage
from builders.conditions import Take
from builders.model import Model
from models import classifier_free
from models.classifier_free import ClassifierFree
from models.denoiser import Denoiser
from sampling import base
from sampling.base import Sampler

CONTRASTS = ("classifier_free", "autoguidance")  # of config.guidance.kind: away from another model
# A class beyond the last is a row of zeros to them, which is what they see where training drops the class.
ONE_HOT = ("song_unet", "dhariwal_unet", "v_diffusion", "own")


def settings(config: ConfigDict) -> tuple[float, tuple[float, float]]:
    """(scale, interval of noise scales) of guidance in two calls. Raises ValueError for an interval that is none."""
    scale, interval = config.guidance.cfg_scale, tuple(config.guidance.cfg_interval)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise ValueError(
            f"config.guidance.cfg_interval={interval} must be (low, high), noise scales with 0 <= low < high, such as "
            '"(0.2,5.0)".'
        )
    told = bool(config.student.guidance)  # a student that is told the scale makes one call
    return 1.0 if told else float(scale), interval


def calls_per_evaluation(config: ConfigDict) -> int:
    """Network calls of one evaluation within the interval."""
    return classifier_free.calls(*settings(config))


def classes(config: ConfigDict) -> tuple[int, int]:
    """How many classes the network is told of, as numbers or as context, and the one that means none (-1: no such).

    Raises ValueError for a null class that it has no entry for.
    """
    data, text = config.data, config.latent.text
    if not data.num_classes and text.kind == "class":
        return text.num_classes, data.null_class if data.null_class >= 0 else text.num_classes - 1
    most = data.num_classes if config.model.name in ONE_HOT else data.num_classes - 1
    if data.num_classes and data.null_class > most:
        also = f", and {most} for none of them" if most == data.num_classes else ""
        raise ValueError(
            f"config.data.null_class={data.null_class}: this network has the classes 0 to {data.num_classes - 1}{also}."
        )
    return data.num_classes, data.null_class


def null_conditions(model: Model, config: ConfigDict) -> dict[str, np.ndarray]:
    """What stands in the place of the conditions in the unconditional half, [1, ...]; {} without such guidance.

    Raises ValueError for a network that knows nothing of the kind.
    """
    scale, _ = settings(config)
    if scale == 1:
        return {}
    where = f"config.guidance.cfg_scale={scale:g}"
    if config.guidance.kind in CONTRASTS:
        raise ValueError(
            f"{where} leads away from the network's own null condition, config.guidance.kind={config.guidance.kind!r} "
            "from another model; choose one of them."
        )
    if config.student.method:
        raise ValueError(f"{where}: a student ({config.student.method}) takes no guidance; sample its teacher.")
    _, null = classes(config)
    if model.text is not None:
        away: Any = config.sampling.negative_prompt if model.text.kind == "clip" else null
        return {"context": model.text.contexts([away])}
    if config.data.num_classes and null >= 0:
        return {"classes": np.array([null], np.int32)}
    raise ValueError(
        f"{where} needs a network that was trained with its condition left out now and then, and this one is told no "
        "class that means none. If it has one, name it: --config.data.null_class=1000, say; else guide with a second "
        "model, config.guidance.kind=classifier_free."
    )


def create_guided(denoiser: Denoiser, config: ConfigDict, null: dict[str, np.ndarray], take: Take) -> Denoiser:
    """`denoiser`, which has its conditions, under config.guidance.cfg_scale."""
    repeated = {name: jnp.asarray(take(value)) for name, value in null.items()}
    return classifier_free.guided(denoiser, repeated, *settings(config))


def counted(
    sampler: Sampler, config: ConfigDict, sampler_of: Callable[[Model, Take], Sampler], model: Model
) -> Sampler:
    """The sampler with its true number of network calls: an evaluation under guidance is two."""
    scale, interval = settings(config)
    if classifier_free.calls(scale, interval) == 1:
        return sampler
    if interval == (0.0, float("inf")):
        calls = sampler.calls
        return sampler._replace(nfe=2 * sampler.nfe, calls=calls and (lambda state: 2 * calls(state)))
    if sampler.calls:
        raise ValueError(
            f"config.guidance.cfg_interval={interval}: --method={config.sampling.method} takes as many steps as it "
            "needs, and those within an interval are not counted; leave the interval out, or choose another method."
        )
    return sampler._replace(nfe=sampler.nfe + _evaluations_inside(sampler, sampler_of, model, interval))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "conditions", "null", "scale", "interval"),
    meta_fields=("network", "sde", "predicts", "told", "limited", "note"),
)
@dataclasses.dataclass(frozen=True)
class _Listener(ClassifierFree):
    """Computes nothing and notes, for each evaluation, whether guidance would act."""

    note: Callable[[Any], None] = print

    def output_at(self, x: Image, t: PerImage) -> Image:
        io_callback(self.note, None, self.acts(t).any())
        return jnp.concatenate([x] * (2 if self.predicts == "both" else 1), axis=-1) * 0


def _evaluations_inside(
    sampler: Sampler, sampler_of: Callable[[Model, Take], Sampler], model: Model, interval: tuple[float, float]
) -> int:
    """How many of a sampler's evaluations lie within the interval.

    A predictor-corrector table says so itself. Any other sampler is run once, for one image, with a network that costs
    nothing: no solver then has to know of guidance in order to count it.
    """
    ends = jnp.asarray(interval[0]), jnp.asarray(interval[1])
    own, found = model.denoiser, []
    listener = _Listener(
        jnp.zeros(()), own.network, own.sde, own.predicts, own.told, interval=ends, note=lambda acts: found.append(acts)
    )
    if hasattr(sampler.rows, "t"):
        return int(listener.acts(jnp.asarray(sampler.rows.t, jnp.float32)).sum())
    run = sampler_of(dataclasses.replace(model, denoiser=listener), Take([0], 1))
    operands, state = run.begin(jax.random.split(jax.random.key(0), 1))
    jax.block_until_ready(base.integrate(run.step, operands, state, run.rows)[0])
    jax.effects_barrier()
    return int(np.sum(found))
