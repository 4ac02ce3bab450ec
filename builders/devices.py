"""What JAX is told before the first computation of a run: precision, devices, the compilation cache."""

import logging as python_logging
import os
from pathlib import Path

import jax

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "tensorfloat32"}


def configure_jax(precision: str) -> None:
    """Global JAX settings of a run; must come before the first computation.

    float32 means HIGHEST in every convolution and matmul (else GPUs and TPUs round silently). On the CPU one virtual
    device a core takes part of the batch: XLA's own threads leave a third of the machine idle on small networks.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"config.precision={precision!r} is unknown; choose one of {sorted(PRECISIONS)}.")
    python_logging.getLogger("jax._src.xla_bridge").setLevel(python_logging.WARNING)  # its search for TPUs
    jax.config.update("jax_default_matmul_precision", PRECISIONS[precision])
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
        except RuntimeError:
            pass  # the backend runs already (a notebook, a test): keep its devices
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "score-sampling" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    # Small programs too: of the dozens around the loop each compiles in no time, and all in a second of every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
