"""Compilation is told from work: what JAX reports counts once, and only where it ended in a program."""

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from reports.compilation import CompileClock, covered

TRACE, LOWER, COMPILE = (
    f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(0, 2), (1, 3)], 3), ([(0, 9), (2, 3), (4, 5)], 9), ([(5, 6), (0, 1)], 2), ([(0, 1), (1, 2)], 2)],
)
def test_what_overlaps_counts_once(spans, length):
    assert covered(spans) == length


def test_a_piece_inside_another_and_what_made_no_program_add_nothing():
    now = [0.0]
    with CompileClock(lambda: now[0]) as clock:
        for at, event, duration in (
            (2.0, TRACE, 1.0),  # of a function
            (3.0, TRACE, 3.0),  # of that which calls it
            (4.0, LOWER, 0.5),
            (9.0, COMPILE, 4.0),
            (11.0, COMPILE, 1.0),  # another program
            (12.0, TRACE, 2.0),  # for shapes alone
            (13.0, "/jax/compilation_cache/cache_retrieval_time_sec", 1.0),
        ):
            now[0] = at
            monitoring.record_event_duration_secs(event, duration)
        assert clock.seconds == 3.0 + 0.5 + 4.0 + 1.0
    now[0] = 20.0
    monitoring.record_event_duration_secs(COMPILE, 5.0)
    assert clock.seconds == 8.5, "closed"


def test_a_program_that_is_there_takes_no_time():
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    with CompileClock() as first:
        double(x)
    with CompileClock() as second:
        double(x)
        jax.eval_shape(lambda x: double(x) + 1, x)
    assert first.seconds > 0 and second.seconds == 0
