"""Memory and time of one gradient of a student against its number of steps, three ways (docs/methods/ld3.md).

python -m benchmarks.ld3_memory [--steps 2,5] [--images 8] [--page docs/methods/ld3.md]

"whole": the unrolled solver as one program; "checkpointed": the same, each network call made again on the way back;
"chained": step by step from Python and on all devices, as the trainer does it; the others run on one. Memory is what
XLA sets aside for temporaries on a device; of a chain, that of its largest program and the states it keeps.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

import run_lib
from reports import rows
from training import ld3, ld3_learning
from training.devices import spread
from training.devices import whole as whole_on_each
from training.ld3_learning import Problem

_STEPS = flags.DEFINE_list("steps", ["2", "5"], "Steps of the student.")
_IMAGES = flags.DEFINE_integer("images", 8, "Images at once.")
_PAGE = flags.DEFINE_string("page", "", "Markdown page whose section ld3_memory is rewritten.")

COLUMNS = {"steps": "steps", "way": "gradient", "mib": "MiB", "compile": "compile, s", "seconds": "a gradient, s"}


def timed(call: Callable[[], Any], repeats: int = 3) -> tuple[float, float]:
    """Seconds of the first call beyond the median of the others, and that median."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    steady = sorted(times[1:])[repeats // 2]
    return times[0] - steady, steady


def whole(problem: Problem, params: ld3.Params, noise: jax.Array, checkpoint: bool) -> dict[str, float]:
    problem = problem._replace(objective=problem.objective._replace(checkpoint=checkpoint))

    def loss(denoiser: Any, params: ld3.Params) -> jax.Array:
        target = jnp.zeros_like(noise)
        return ld3.loss(problem.objective, problem.space, problem.student, denoiser, params, noise, target).sum()

    start = time.perf_counter()
    compiled = jax.jit(jax.grad(loss, argnums=1)).lower(problem.denoiser, params).compile()
    seconds = time.perf_counter() - start
    _, steady = timed(functools.partial(compiled, problem.denoiser, params))
    memory = compiled.memory_analysis()
    return {"mib": memory.temp_size_in_bytes / 2**20 if memory else 0.0, "compile": seconds, "seconds": steady}


def chained(problem: Problem, params: ld3.Params, noise: jax.Array) -> dict[str, float]:
    problem = problem._replace(denoiser=whole_on_each(problem.denoiser))
    step, init = ld3.step_of(problem.student, params)
    state = spread(init(noise), ld3_learning.IMAGES)
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf[0], noise.dtype), ld3.rows(problem.space, problem.student, params))
    memory = ld3_learning._backward.lower(step, problem.denoiser, state, row, state).compile().memory_analysis()
    kept = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)) * len(params["logits"])
    zeros = jnp.zeros_like(noise)
    places = jnp.arange(len(noise))
    jax.clear_caches()
    compile_seconds, steady = timed(lambda: ld3_learning.losses_and_gradient(problem, params, noise, zeros, places))
    total = (memory.temp_size_in_bytes if memory else 0) + kept
    return {"mib": total / 2**20, "compile": compile_seconds, "seconds": steady}


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    model = run_lib.load("configs/ve/demo.py")
    space = ld3.Space(model.sde, 50.0, 0.005, to_zero=True)
    problem = Problem(ld3.Objective(ld3.l2, 50.0), space, ld3.Student("unipc"), model.denoiser)
    noise = jax.random.normal(jax.random.key(0), (_IMAGES.value, *model.shape))
    found = []
    for n in map(int, _STEPS.value):
        params = jax.tree.map(jnp.asarray, ld3.initial(space, ld3.Student("unipc", min(3, n)), n))
        of_n = problem._replace(student=ld3.Student("unipc", min(3, n)))
        found += [
            {"steps": n, "way": "whole"} | whole(of_n, params, noise, False),
            {"steps": n, "way": "checkpointed"} | whole(of_n, params, noise, True),
            {"steps": n, "way": "chained"} | chained(of_n, params, noise),
        ]
        print(rows.markdown_table(found, COLUMNS), flush=True)
        if _PAGE.value:
            rows.replace_section(_PAGE.value, "ld3_memory", rows.markdown_table(found, COLUMNS))


if __name__ == "__main__":
    app.run(main)
