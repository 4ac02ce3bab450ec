"""Strict settings for every test: 64-bit floats, no accidental broadcasting, the CPU, two virtual devices.

Most of the time goes into compiling programs that run once, so the compiler is told not to optimise the machine code
(nor those of programs that a test starts); JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs the tests on the code that users get.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)  # the sharded path is the default path
jax.config.update("jax_enable_x64", True)  # so that an order or a law can be tested to 1e-10
jax.config.update("jax_numpy_rank_promotion", "raise")  # [b] * [b,h,w,c] by accident is an error; write x[:, None, ...]

import shape_checks  # noqa: E402

shape_checks.install()
