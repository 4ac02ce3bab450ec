"""Classifier-free guidance by the network's own null condition (Ho and Salimans 2022).

A network that was trained with its class or prompt left out now and then knows both what an image under the condition
looks like and what any image looks like. What sets the two apart is taken w times:

    D = D_null + w (D_condition - D_null)

w = 1 is the conditional network, 0 the unconditional one. At fixed x and t all that networks predict are affine in one
another with the same coefficients, so the law holds for eps, x0, v and score alike and is applied to the output: every
sampler, stochastic or not, sees a denoiser like any other.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from array_types import Image, OtherChannels, PerImage
from models.denoiser import Denoiser

EachOne = Bool[Array, "b"]
_SLACK = 1e-4  # relative, of the ends of an interval: noise scales pass through SDE time in float32


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "conditions", "null", "scale", "interval"),
    meta_fields=("network", "sde", "predicts", "told", "limited"),
)
@dataclasses.dataclass(frozen=True)
class ClassifierFree(Denoiser):
    """A denoiser under classifier-free guidance; 2 network calls, made as one of twice the batch, null first.

    Attributes:
      null: what stands in the place of `conditions` in the unconditional half, one entry an image; conditions without
        a null (a small image to enlarge) are those of the image in both.
      scale: w; another one compiles nothing anew.
      interval: noise scales (low, high) between which guidance acts (Kynkaanniemi et al. 2024, "Applying guidance in a
        limited interval"). Outside, where no image of the batch needs it, the conditional call alone is made.
      limited: whether there is an outside.
    """

    null: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: Any = 1.0  # a number, or one an image [b]
    interval: Any = (0.0, float("inf"))  # two numbers
    limited: bool = False

    def acts(self, t: PerImage) -> EachOne:
        """Whether guidance acts at SDE times t, [b]."""
        s, (low, high) = self.sde.noise_scale(t), self.interval
        return (s >= low * (1 - _SLACK)) & (s <= high * (1 + _SLACK))

    def output_at(self, x: Image, t: PerImage) -> OtherChannels:
        if not self.limited:
            return self._guided(x, t, jnp.broadcast_to(jnp.asarray(self.scale, x.dtype), t.shape))
        acts = self.acts(t)
        scale = jnp.where(acts, jnp.asarray(self.scale, x.dtype), 1)
        return jax.lax.cond(acts.any(), lambda: self._guided(x, t, scale), lambda: Denoiser.output_at(self, x, t))

    def _guided(self, x: Image, t: PerImage, scale: PerImage) -> OtherChannels:
        """The law above with one scale an image."""
        null = {**self.conditions, **self.null}
        both = {name: jnp.concatenate([null[name], value]) for name, value in self.conditions.items()}
        doubled = Denoiser.output_at(self.given(**both), jnp.concatenate([x, x]), jnp.concatenate([t, t]))
        away, towards = jnp.split(doubled, 2)
        return away + scale[:, None, None, None] * (towards - away)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "conditions", "null", "scale", "interval"),
    meta_fields=("network", "sde", "predicts", "told", "limited", "null_class"),
)
@dataclasses.dataclass(frozen=True)
class GuidedTeacher(ClassifierFree):
    """A denoiser under classifier-free guidance of a scale that is given as a condition: `given(classes, guidance)`.

    It teaches students that are told the scale (Meng et al. 2023). 2 network calls.
    """

    null_class: int = 0

    def given(self, **conditions: jax.Array) -> "GuidedTeacher":
        if "guidance" not in conditions:
            return dataclasses.replace(self, conditions={**self.conditions, **conditions})
        scale = conditions.pop("guidance")
        null = {"classes": jnp.full_like(conditions["classes"], self.null_class)}
        return dataclasses.replace(self, conditions={**self.conditions, **conditions}, null=null, scale=scale)


def guided_teacher(denoiser: Denoiser, null_class: int) -> GuidedTeacher:
    """`denoiser` as a teacher of students that are told a guidance scale; `null_class` is the class that means none."""
    fields = {field.name: getattr(denoiser, field.name) for field in dataclasses.fields(Denoiser)}
    return GuidedTeacher(**fields, null_class=null_class)


def guided(
    denoiser: Denoiser,
    null: Mapping[str, jax.Array],
    scale: float,
    interval: tuple[float, float] = (0.0, float("inf")),
) -> Denoiser:
    """`denoiser`, whose conditions are given, guided by `scale`; as it is where that changes nothing.

    null: by the names of conditions, of the same shapes.
    """
    if scale == 1 or not null:
        return denoiser
    everywhere = tuple(interval) == (0.0, float("inf"))
    if scale == 0 and everywhere:
        return denoiser.given(**null)
    fields = {field.name: getattr(denoiser, field.name) for field in dataclasses.fields(Denoiser)}
    ends = jnp.asarray(interval[0]), jnp.asarray(interval[1])
    return ClassifierFree(**fields, null=dict(null), scale=jnp.asarray(scale), interval=ends, limited=not everywhere)


def calls(scale: float, interval: tuple[float, float]) -> int:
    """Network calls of one evaluation within the interval: 2, or 1 where `guided` has only one condition to ask."""
    return 1 if scale == 1 or (scale == 0 and tuple(interval) == (0.0, float("inf"))) else 2
