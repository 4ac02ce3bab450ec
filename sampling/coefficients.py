"""What the coefficient tables of the solvers are made of: Lagrange bases, exponential integrals, orders by step.

All functions take float64 NumPy arrays (a table made before compilation) or JAX arrays (a table that receives gradients
with respect to the grid) and answer in kind. The leading axis n runs over the steps, so that a table costs the same few
array operations for 5 steps and for 1000.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array

# Gauss-Legendre nodes and weights on [0, 1]: exact for the polynomials here and to rounding for their exponentials.
_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(32) + np.array([[1.0], [0.0]])) / 2


def array_module(x: Array):
    """jax.numpy for JAX arrays and tracers, numpy for everything else."""
    return jnp if isinstance(x, jax.Array) else np


def phi(k: int, z: Array) -> Array:
    """phi_k(z) = integral over [0, 1] of e^((1-u) z) u^(k-1)/(k-1)! du, the functions of exponential integrators.

    phi_1(z) = (e^z - 1)/z and phi_{k+1}(z) = (phi_k(z) - 1/k!)/z; by quadrature, because that recursion loses k times
    log10(1/|z|) digits at small steps. z: [n].
    """
    xp = array_module(z)
    weights = _WEIGHTS * _NODES ** (k - 1) / math.factorial(k - 1)
    return xp.sum(weights[None] * xp.exp((1 - _NODES)[None] * z[:, None]), axis=1)


def lagrange_basis(nodes: Array, points: Array) -> Array:
    """L_j(point): the polynomial that is 1 at node j and 0 at the others. [n, k] and [n, q] -> [n, k, q]."""
    xp, k = array_module(nodes), nodes.shape[1]
    basis = []
    for j in range(k):
        value = xp.ones_like(points)
        for i in range(k):
            if i != j:
                value = value * (points - nodes[:, i, None]) / (nodes[:, j, None] - nodes[:, i, None])
        basis.append(value)
    return xp.stack(basis, axis=1)


def lagrange_integrals(
    nodes: Array,
    start: Array,
    stop: Array,
    weight: Callable[[Array], Any] = lambda points: 1.0,
    variable: Callable[[Array], Array] = lambda points: points,
) -> Array:
    """Integrals of weight(x) L_j(variable(x)) over [start, stop], one interval a step.

    Args:
      nodes: where the interpolated values stand, in `variable`, [n, k].
      start, stop: [n].
      weight, variable: of points [n, q], elementwise; `weight` may also return [n, q] built from arrays [n, 1].

    Returns: [n, k].
    """
    xp = array_module(nodes)
    length = (stop - start)[:, None]
    points = start[:, None] + length * _NODES[None]
    values = lagrange_basis(nodes, variable(points)) * (weight(points) * length * _WEIGHTS[None])[:, None]
    return xp.sum(values, axis=-1)


def rising_orders(n: int, order: int) -> np.ndarray:
    """1, 2, ..., order, order, ...: the first steps have less history."""
    return np.minimum(np.arange(n) + 1, order)


def rising_and_falling_orders(n: int, order: int) -> np.ndarray:
    """1, 2, ..., order, ..., 2, 1: the last steps, long in log s and possibly ending at s = 0, extrapolate less."""
    return np.minimum(rising_orders(n, order), np.arange(n, 0, -1))


def assemble(orders: np.ndarray, width: int, rows: Callable[[int, np.ndarray], Array]) -> Array:
    """One table from formulas that differ by order.

    Args:
      orders: the order of each step, [n].
      width: columns of the table; narrower rows are padded with zeros.
      rows: (order, the steps that have it [m]) -> their coefficients [m, <= width].
    """
    groups = [(order, np.flatnonzero(orders == order)) for order in np.unique(orders)]
    parts = [rows(int(order), steps) for order, steps in groups]
    xp = array_module(parts[0])
    padded = [xp.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
    return xp.concatenate(padded)[np.argsort(np.concatenate([steps for _, steps in groups]))]


def history_nodes(x: Array, steps: np.ndarray, k: int) -> Array:
    """x at the start of each step and at the k - 1 grid points before it, newest first: [m, k]."""
    return x[steps[:, None] - np.arange(k)[None]]
