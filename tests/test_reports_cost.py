"""Arithmetic and memory read off a program, against sums done by hand and against the compiler."""

import jax
import jax.numpy as jnp
import pytest

from reports.cost import cost, matmul_speed


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_matrix_product_is_two_operations_a_term():
    assert cost(jnp.dot, shape(3, 5), shape(5, 7)).flops == 2 * 3 * 5 * 7


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_two_operations_an_entry_of_its_kernel(groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    found = cost(convolve, shape(2, 8, 8, 4), shape(3, 3, 4 // groups, 6))
    assert found.flops == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4 // groups)
    assert found.memory == 4 * (2 * 8 * 8 * 4 + 3 * 3 * (4 // groups) * 6 + 2 * 8 * 8 * 6)


def test_a_loop_costs_its_turns_a_branch_its_dearest_side_and_a_call_its_body():
    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    once = 2 * 4**3
    assert cost(loop, shape(4, 4)).flops == 5 * once
    assert 2 * once <= cost(branch, shape(4, 4)).flops < 2.2 * once
    assert cost(jax.jit(lambda x: x @ x), shape(4, 4)).flops == once


def test_memory_is_what_is_alive_together_and_not_the_sum():
    def chain(x):
        for _ in range(10):
            x = x + 1
        return x

    def fan(x):
        parts = [x + n for n in range(10)]
        return sum(parts)

    size = 4 * 1000
    assert cost(chain, shape(1000)).memory == 3 * size  # the argument, and two neighbours in the chain
    assert cost(fan, shape(1000)).memory >= 11 * size
    assert cost(jax.jit(chain), shape(1000)).memory == 3 * size


def test_the_figures_are_near_the_compilers():
    def network(kernels, x):
        for kernel in kernels:
            x = jax.nn.swish(jax.lax.conv(x, kernel, (1, 1), "SAME"))
        return x

    arguments = [shape(16, 3, 3, 3), shape(16, 16, 3, 3), shape(3, 16, 3, 3)], shape(4, 3, 16, 16)
    lowered = jax.jit(network).lower(*arguments)
    found = cost(network, *arguments)
    assert 0.8 < found.flops / lowered.cost_analysis()["flops"] < 1.25  # the compiler leaves out padding
    memory = lowered.compile().memory_analysis()
    assert 0.5 < found.memory / (memory.temp_size_in_bytes + memory.argument_size_in_bytes) < 3


def test_the_speed_counts_two_operations_a_term_of_three_products(monkeypatch):
    ticks = iter((1.0, 3.0))
    monkeypatch.setattr("reports.cost.time.perf_counter", lambda: next(ticks))
    assert matmul_speed() == 3 * 2 * 1024**3 / 2.0
