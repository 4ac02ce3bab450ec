"""Strict settings for every test: 64-bit floats, no accidental broadcasting, the CPU, two virtual devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)  # the sharded path is the default path
jax.config.update("jax_enable_x64", True)  # so that an order or a law can be tested to 1e-10
jax.config.update("jax_numpy_rank_promotion", "raise")  # [b] * [b,h,w,c] by accident is an error; write x[:, None, ...]
