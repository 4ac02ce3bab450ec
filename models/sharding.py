"""Parameters cut over devices, and put together where a network is called: fully sharded data parallelism.

A parameter lies cut along the largest of its axes that the number of devices divides, so that every device keeps one
share of it. Every device works on images of its own, with whole parameters that last as long as they are needed
(Rajbhandari et al. 2020, "ZeRO", stage 3).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def split_axis(shape: Sequence[int], count: int) -> int | None:
    """The largest axis that `count` divides, the last of equals; None where it divides none."""
    fitting = [(size, axis) for axis, size in enumerate(shape) if size and size % count == 0]
    return max(fitting)[1] if fitting else None


def lay(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """How an array of that shape lies cut over a mesh of one axis; whole on each device where it cannot be cut."""
    axis = split_axis(shape, mesh.size)
    return NamedSharding(mesh, PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, *mesh.axis_names))


def cut_axis(leaf: Any) -> int | None:
    """The axis along which an array is cut over devices; None for one that is not, or that is being traced."""
    known = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    spec = leaf.sharding.spec if known and isinstance(leaf.sharding, NamedSharding) else ()
    return next((axis for axis, name in enumerate(spec) if name is not None), None)


@dataclasses.dataclass(frozen=True)
class Gathering:
    """A network `(params, x, labels, **conditions) -> output` that is given its device's shares of the parameters.

    For use under `shard_map`. `axes`: where each leaf of the parameters is cut; `name`, `count`: of the mesh's axis.
    """

    network: Callable[..., jax.Array]
    axes: tuple[int | None, ...]
    name: str
    count: int

    def __call__(self, params: Any, x: jax.Array, labels: jax.Array, **conditions: jax.Array) -> jax.Array:
        leaves, structure = jax.tree.flatten(params)
        data, data_structure = jax.tree.flatten((x, labels, conditions))

        def call(*flat: jax.Array) -> jax.Array:
            whole = jax.tree.unflatten(structure, flat[: len(leaves)])
            x, labels, conditions = jax.tree.unflatten(data_structure, flat[len(leaves) :])
            return self.network(whole, x, labels, **conditions)

        shapes = [self._whole(leaf, axis) for leaf, axis in zip(leaves, self.axes, strict=True)]
        shapes += [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in data]
        gathers = [functools.partial(self._gather, leaf, axis) for leaf, axis in zip(leaves, self.axes, strict=True)]
        return evaluate(jax.make_jaxpr(call)(*shapes), gathers, data)[0]

    def _whole(self, leaf: jax.Array, axis: int | None) -> jax.ShapeDtypeStruct:
        times = [self.count if place == axis else 1 for place in range(leaf.ndim)]
        return jax.ShapeDtypeStruct([size * k for size, k in zip(leaf.shape, times, strict=True)], leaf.dtype)

    def _gather(self, leaf: jax.Array, axis: int | None, after: jax.Array) -> jax.Array:
        if axis is None:
            return leaf
        # A zero that only `after` can tell, NaN or not: compilers drop barriers before they order what they compute,
        # and would put all parameters together at the start.
        value = after[(0,) * after.ndim]
        zero = 0 * jnp.where(jnp.isfinite(value), value, 0)
        return jax.lax.all_gather(leaf + zero.astype(leaf.dtype), self.name, axis=axis, tiled=True)


def evaluate(
    program: core.ClosedJaxpr, late: Sequence[Callable[[jax.Array], jax.Array]], data: Sequence[jax.Array]
) -> list[jax.Array]:
    """The results of a program whose first arguments are made where they are used, and let go after.

    Args:
      late: for each of them, what makes it once a value that it meets there is known.
      data: the other arguments.
    """
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.constvars, program.consts, strict=True))
    known |= dict(zip(jaxpr.invars[len(late) :], data, strict=True))
    makers = dict(zip(jaxpr.invars, late, strict=False))

    def value(var: Any, after: jax.Array) -> Any:
        if isinstance(var, core.Literal):
            return var.val
        return known[var] if var in known else makers[var](after)

    def postponed(line: core.JaxprEqn, place: int, after: jax.Array) -> jax.Array:
        return _run(jaxpr, line, [value(var, after) for var in line.invars])[place]

    for line in jaxpr.eqns:
        operands = [var for var in line.invars if not isinstance(var, core.Literal)]
        met = [known[var] for var in operands if var in known]
        if operands and not met:  # of parameters alone: when a value meets it
            makers |= {var: functools.partial(postponed, line, place) for place, var in enumerate(line.outvars)}
        else:
            results = _run(jaxpr, line, [value(var, met[0] if met else data[0]) for var in line.invars])
            known.update(zip(line.outvars, results, strict=True))
    return [value(var, data[0]) for var in jaxpr.outvars]


def _run(jaxpr: core.Jaxpr, line: core.JaxprEqn, values: Sequence[Any]) -> list[jax.Array]:
    """One line of a program by itself."""
    given = {var: it for var, it in zip(line.invars, values, strict=True) if not isinstance(var, core.Literal)}
    alone = jaxpr.replace(constvars=[], invars=list(given), outvars=line.outvars, eqns=[line], effects=line.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*given.values())
