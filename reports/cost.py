"""What a function will cost, read off its program before anything is compiled.

The program is JAX's own (a jaxpr): one line an array operation, without XLA's fusions. Arithmetic is counted exactly
for convolutions and matrix products, which is nearly all of a network. Memory is the most that is alive between two
lines; XLA fuses some of it away and adds buffers of its own: a figure to plan with, not a promise.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

# Share of a matrix product's speed to reckon with: between a quarter and one on the machines we measured.
EFFICIENCY = 0.5


class Cost(NamedTuple):
    """Of one call: arithmetic operations, and bytes alive at the worst moment, arguments included."""

    flops: float
    memory: int


def cost(function: Callable[..., Any], *args: Any) -> Cost:
    """The cost of `function(*args)`; arguments may be `jax.ShapeDtypeStruct`. Nothing is compiled or run."""
    return _cost(jax.make_jaxpr(function)(*args).jaxpr)


def matmul_speed(precision: str = "highest") -> float:
    """Operations a second of a square float32 matrix product on the first device; takes a fraction of a second."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    multiply(a).block_until_ready()
    start = time.perf_counter()
    for _ in range(3):
        a = multiply(a) / size
    a.block_until_ready()
    return 3 * 2 * size**3 / (time.perf_counter() - start)


def _cost(jaxpr: Any) -> Cost:
    last_use = {var: n for n, line in enumerate(jaxpr.eqns) for var in line.invars if not isinstance(var, core.Literal)}
    kept = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    alive = sum(_bytes(var) for var in (*jaxpr.invars, *jaxpr.constvars))
    arguments = set(jaxpr.invars) | set(jaxpr.constvars)  # they belong to the caller
    flops, peak = 0.0, alive
    for n, line in enumerate(jaxpr.eqns):
        inner_flops, inner_memory = _line_cost(line)
        made = sum(_bytes(var) for var in line.outvars)
        inputs = sum(_bytes(var) for var in line.invars)
        flops += inner_flops
        alive += made
        # An inner program's memory holds its arguments and results, which are counted here already.
        peak = max(peak, alive, alive + inner_memory - made - inputs)
        read = {var for var in line.invars if not isinstance(var, core.Literal)}
        for var in {*read, *line.outvars}:
            if last_use.get(var, n) == n and var not in kept and var not in arguments:
                alive -= _bytes(var)
    return Cost(flops, peak)


def _line_cost(line: Any) -> Cost:
    """Of one line; of the programs inside it where it is a loop, a branch or a call."""
    name, params = line.primitive.name, line.params
    out = sum(math.prod(getattr(var.aval, "shape", ())) for var in line.outvars)
    if name == "conv_general_dilated":
        kernel = line.invars[1].aval.shape
        return Cost(2 * out * math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]], 0)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return Cost(2 * out * math.prod(line.invars[0].aval.shape[axis] for axis in contracted), 0)
    inner = [_cost(getattr(program, "jaxpr", program)) for program in _programs(params)]
    if not inner:
        return Cost(out, 0)
    together = max if name == "cond" else sum
    flops = together(part.flops for part in inner) * params.get("length", 1)
    return Cost(flops, max(part.memory for part in inner))


def _programs(params: dict[str, Any]) -> list[Any]:
    values = [value for entry in params.values() for value in (entry if isinstance(entry, tuple | list) else (entry,))]
    return [value for value in values if isinstance(value, core.Jaxpr | core.ClosedJaxpr)]


def _bytes(var: Any) -> int:
    aval = var.aval
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") and hasattr(aval, "dtype") else 0
