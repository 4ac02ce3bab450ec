"""The grid, the result, and the one loop that every sampler runs in.

A sampler is a pure function `step(operands, state, row) -> (state, record)`, a state (a NamedTuple of arrays) and rows:
a NamedTuple of arrays whose leading axis runs over the steps, made in float64 NumPy before anything is compiled. The
loop is a `lax.scan` over chunks of a fixed length, so that the number of steps enters no compiled shape, progress can
be shown and a run can stop between chunks. The last chunk is padded and padded steps are skipped, not computed.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from array_types import Image, Keys, Table

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class TimeGrid(NamedTuple):
    """Decreasing noise scales s = sigma/alpha: where the solver stands and what the network is told, n + 1 of each.

    The two agree unless the times told to the network are learned apart (LD3's decoupled times). The last s may be 0;
    the last s_model is never told.
    """

    s: Table
    s_model: Table

    @property
    def num_steps(self) -> int:
        return len(self.s) - 1


class SampleResult(NamedTuple):
    """What every sampler returns. Images in the model's data range ([0, 1], or [-1, 1] if `data.centered`)."""

    images: Any  # Image, or a NumPy array once it has left the devices
    nfe: int  # network calls an image, counted as they happened
    gradient_calls: int = 0  # guidance gradients an image
    trajectory: Any = None  # states after each step, [n, b, h, w, c]
    denoised: Any = None  # x0 estimates of each step, [n, b, h, w, c]
    calls: Any = None  # network calls of each image, [b], where they differ; `nfe` is then the largest


class Sampler(NamedTuple):
    """A sampler ready to run: what `iterate_chunks` needs, how to begin and how to read the result."""

    step: Step
    rows: Any
    begin: Callable[[Keys], tuple[Any, Any]]  # the keys of the images, [b] -> (operands, state); may be called in jit
    image: Callable[[Any], Image]  # final state -> images in the model's data range
    nfe: int
    gradient_calls: int = 0
    calls: Callable[[Any], Any] | None = None  # final state -> network calls of each image, where they differ; nfe is 0
    of: Callable[[Sequence[int]], "Sampler"] | None = None  # for images of these numbers, where each has its condition
    grid: Table | None = None  # the noise scales where it stands, for the record; None where it has none of its own


def _floating(leaf) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)


def begin_on(mesh: Mesh, sampler: Sampler, keys: Keys) -> tuple[Any, Any]:
    """`sampler.begin(keys)` with every per-image array split over the one-dimensional `mesh` and the rest on all of it.

    An array is per image if its shape follows the number of keys, which must be a multiple of the mesh's size. Others
    that lie on the mesh already, cut or whole, stay as they are.
    """
    double = jax.eval_shape(lambda keys: sampler.begin(jnp.concatenate([keys, keys])), keys)

    def place(leaf, like):
        differing = [axis for axis, size in enumerate(leaf.shape) if size != like.shape[axis]]
        laid = leaf.sharding if isinstance(leaf, jax.Array) else None
        if not differing and isinstance(laid, NamedSharding) and laid.mesh == mesh:
            return leaf
        spec = PartitionSpec(*[None] * differing[0], *mesh.axis_names) if differing else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, sampler.begin(keys), double)


class _Split(NamedTuple):
    """How the leaves of (operands, state) lie on a mesh; hashable."""

    mesh: Mesh
    specs: tuple[PartitionSpec, ...]


def _split(tree: Any) -> _Split | None:
    """The placement of a tree with at least one leaf sharded over a mesh; None if all of it lies on one device."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    named = [sharding for sharding in shardings if isinstance(sharding, NamedSharding)]
    if not named or named[0].mesh.size == 1:
        return None
    specs = (sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec() for sharding in shardings)
    return _Split(cast(Mesh, named[0].mesh), tuple(specs))


@functools.partial(jax.jit, static_argnames=("step", "split"), donate_argnames=("state",))
def _scan_chunk(step: Step, split: _Split | None, operands: Any, state: Any, rows: Any, active: jax.Array):
    once = jax.jit(step, inline=True)  # traced once, for the shapes of its records and for the loop

    def scan(operands, state, rows, active):
        def body(state, row_and_active):
            row, is_active = row_and_active
            record_shape = jax.eval_shape(once, operands, state, row)[1]

            def skip(state):
                return state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), record_shape)

            return jax.lax.cond(is_active, lambda state: once(operands, state, row), skip, state)

        return jax.lax.scan(body, state, (rows, active))

    if split is None:
        return scan(operands, state, rows, active)
    # Each device runs the loop on its own images and talks to no other. Left to the partitioner, every Fourier
    # transform would gather the whole batch on every device.
    spec_operands, spec_state = jax.tree.unflatten(jax.tree.structure((operands, state)), split.specs)
    records_spec = PartitionSpec(None, *split.mesh.axis_names)
    everywhere = PartitionSpec()
    run = jax.shard_map(
        scan,
        mesh=split.mesh,
        in_specs=(spec_operands, spec_state, everywhere, everywhere),
        out_specs=(spec_state, records_spec),
        check_vma=False,
    )
    return run(operands, state, rows, active)


def iterate_chunks(step: Step, operands: Any, state: Any, rows: Any, chunk: int) -> Iterator[tuple[Any, Any, int]]:
    """Runs `step` over all rows, yielding (state, records, steps done) after each chunk.

    Args:
      step: hashable pure function; a new function object compiles anew, so define it at module level or as a frozen
        dataclass with `__call__`.
      operands: what stays fixed (network parameters, masks, keys), as arguments so that they are not compiled in.
      state: NamedTuple of arrays; donated. Its first floating leaf sets the dtype the rows are cast to.
      rows: NamedTuple of NumPy arrays [n, ...].
      chunk: steps a call. The records of padded steps are dropped.

    Operands and state may be sharded over a one-dimensional mesh along their image axis: every device then runs its own
    images without communication.
    """
    split = _split((operands, state))
    for window, active, done in _windows(state, rows, chunk):
        state, records = _scan_chunk(step, split, operands, state, window, active)
        counted = int(active.sum())
        yield state, jax.tree.map(lambda leaf, n=counted: leaf[:n], records), done


def chunk_memory(step: Step, operands: Any, state: Any, rows: Any, chunk: int) -> int | None:
    """Bytes that the program of `iterate_chunks` takes on a device: arguments, results and temporaries together.

    Read off the compiled program, so it belongs to these settings whatever else the process has run. After a run, with
    the state it ended in, it is the program of that run and nothing is compiled. None where the platform says nothing.
    """
    window, active, _ = next(_windows(state, rows, chunk))
    compiled = _scan_chunk.lower(step, _split((operands, state)), operands, state, window, active).compile()
    found = compiled.memory_analysis()
    if found is None:
        return None
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes


def _windows(state: Any, rows: Any, chunk: int) -> Iterator[tuple[Any, np.ndarray, int]]:
    """(rows of a chunk in the dtype of the state, which of them count, steps done after it), chunk by chunk."""
    dtype = next(leaf.dtype for leaf in jax.tree.leaves(state) if _floating(leaf))
    count = len(jax.tree.leaves(rows)[0])
    padding = -count % chunk

    def pad(leaf):
        leaf = np.asarray(leaf)
        leaf = leaf.astype(dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf
        # Padded rows repeat the last one: finite values, never used.
        return np.concatenate([leaf, np.repeat(leaf[-1:], padding, axis=0)])

    rows = jax.tree.map(pad, rows)
    active = np.arange(count + padding) < count
    for start in range(0, count, chunk):
        window = slice(start, start + chunk)
        yield jax.tree.map(lambda leaf, w=window: leaf[w], rows), active[window], min(start + chunk, count)


def integrate(step: Step, operands: Any, state: Any, rows: Any, chunk: int | None = None) -> tuple[Any, Any]:
    """`iterate_chunks` to the end: the final state and the records of all steps, stacked."""
    count = len(jax.tree.leaves(rows)[0])
    start = jax.tree.map(jnp.copy, state)  # the caller's state must survive the donation
    parts = []
    for state, records, _ in iterate_chunks(step, operands, start, rows, chunk or count):  # noqa: B007
        parts.append(records)
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def unroll(step: Step, operands: Any, state: Any, rows: Any) -> tuple[Any, Any]:
    """The same as `integrate`, written out step by step for use under `jax.grad` inside a caller's jit.

    On the CPU the gradient of convolutions inside a scan is 8-20 times slower than written out; the few steps of a
    student solver make that affordable. Tests hold this and `integrate` equal.
    """
    records = []
    for index in range(len(jax.tree.leaves(rows)[0])):
        state, record = step(operands, state, jax.tree.map(lambda leaf, i=index: leaf[i], rows))
        records.append(record)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
