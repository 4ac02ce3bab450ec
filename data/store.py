"""The store of a teacher's results: noise and image (pairs), or estimates along the whole path (trajectories).

A folder of shards and one `store.json`. A shard is an .npy file of records

    index   uint64, of the image: its noise is normal(fold_in(key(seed), index)) in float32
    label   int32, -1 without classes
    frames  [M, h, w, c] in the data range of the model, little-endian; frame m belongs to label_times[m], the last one
            is the image. Pairs are M = 1.
    aux     as frames: the states at the same times, where they are kept

Noise is never stored but drawn again, whatever the batch, the number of devices or the point of resumption.
`store.json` holds everything that fixes the bytes and a checksum of every shard. Shards and metadata appear by rename,
and neither holds a time or a name of a machine, so that a run killed at any moment and started again ends with the same
bytes as one that was not.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.pipeline import Batches

FORMAT = "teacher-store"
VERSION = 1
FILE = "store.json"
TARGETS = ("x0", "state")
DTYPES = ("float16", "float32")
HELD_OUT = 100  # one in so many records, the last ones, is kept out of training
_PROBED = 16  # records whose noise is compared when a store is opened

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Specification:
    """Everything that fixes the bytes of a store. The mappings hold JSON.

    Attributes:
      shape: (h, w, c) of an image.
      count: records 0 .. count - 1.
      seed: of the noise, config.seed.
      teacher: `name`, `sha256` of its weights, `predicts`, `sde`, `prior_scale`: whose path it is.
      sampler: `method`, `num_steps`, `order`, `grid`, `calls`, ...: how the path was solved.
      label_times: SDE time that each of the M frames carries, decreasing.
      eval_times: SDE times of the network calls that made them, where they are not the same.
      lam: log(alpha/sigma) at eval_times.
      target: what frames are, "x0" estimates or "state"s.
      guidance: kind, scale and hashes of the conditions; empty without.
      dtype: of the frames; "float32" where a student is to come closer than float16 resolves (5e-4 of the value).
      aux: records have `aux` too.
      shard_size: records a file.
    """

    shape: Shape
    count: int
    seed: int
    teacher: Mapping[str, Any]
    sampler: Mapping[str, Any]
    label_times: tuple[float, ...] = (0.0,)
    eval_times: tuple[float, ...] = ()
    lam: tuple[float, ...] = ()
    target: str = "x0"
    guidance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float16"
    aux: bool = False
    shard_size: int = 256

    def __post_init__(self):
        if self.count < 1 or self.shard_size < 1:
            raise ValueError(f"A store of {self.count} records, {self.shard_size} a shard: both must be at least 1.")
        if self.dtype not in DTYPES or self.target not in TARGETS:
            raise ValueError(
                f"A store has dtype {' or '.join(DTYPES)} and target {' or '.join(TARGETS)}, got {self.dtype!r} and "
                f"{self.target!r}."
            )
        if not self.label_times or not (np.diff(self.label_times) < 0).all():
            raise ValueError(f"label_times must decrease, got {list(self.label_times)}.")

    @property
    def record(self) -> np.dtype:
        """The layout of one record."""
        frames = (np.dtype(self.dtype).newbyteorder("<"), (len(self.label_times), *self.shape))
        fields = [("index", "<u8"), ("label", "<i4"), ("frames", *frames)]
        return np.dtype([*fields, ("aux", *frames)] if self.aux else fields)

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))


class Records(NamedTuple):
    """Records in the order they were asked for."""

    indices: np.ndarray  # uint64 [n]
    label: np.ndarray  # int32 [n]
    frames: np.ndarray  # [n, M, h, w, c]
    aux: np.ndarray | None = None

    @property
    def images(self) -> np.ndarray:
        """The last frame of each, float32 [n, h, w, c]."""
        return self.frames[:, -1].astype(np.float32)


def start_noise(seed: int, indices: Sequence[int] | np.ndarray, shape: Shape) -> jax.Array:
    """The noise of records `indices` [n], [n, h, w, c] float32: normal(fold_in(key(seed), index))."""
    key, places = jax.random.key(seed), jnp.asarray(np.asarray(indices), jnp.uint32)
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32))(places)


def noise_specification(seed: int, shape: Shape) -> dict[str, Any]:
    """What the noise of a store is, and enough of it to tell when another program would draw another one.

    `sha256` is of the random bits behind the first tensors, which are the same on every platform; `probe` one value of
    each, since the float that bits become may differ in the last place.
    """
    key = jax.random.key(seed)
    places = jnp.arange(_PROBED, dtype=jnp.uint32)
    bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), shape, jnp.uint32))(places)
    probe = np.asarray(start_noise(seed, range(_PROBED), shape))[:, 0, 0, 0]
    return {
        "seed": seed,
        "prng": str(jax.random.key_impl(key)),
        "partitionable": bool(jax.config.jax_threefry_partitionable),  # type: ignore[attr-defined]
        "dtype": "float32",
        "sha256": hashlib.sha256(np.asarray(bits).astype("<u4").tobytes()).hexdigest(),
        "probe": [round(float(value), 5) for value in probe],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """A store on disk, complete or not. Made by `create` (to write) or `open_store` (to read)."""

    folder: Path
    spec: Specification
    shards: dict[int, dict[str, Any]]  # first record -> its entry in store.json

    def __len__(self) -> int:
        return self.spec.count

    def pending(self) -> list[range]:
        """The indices of each shard that is not there yet, or no longer as large as it was."""
        starts = range(0, self.spec.count, self.spec.shard_size)
        ranges = [range(start, min(start + self.spec.shard_size, self.spec.count)) for start in starts]
        return [indices for indices in ranges if not self._present(indices)]

    def _present(self, indices: range) -> bool:
        entry, path = self.shards.get(indices.start), self.folder / shard_name(indices.start)
        return entry is not None and path.exists() and path.stat().st_size == entry["bytes"]

    def write(
        self,
        indices: range,
        frames: np.ndarray,
        labels: np.ndarray | None = None,
        aux: np.ndarray | None = None,
        left_out: Sequence[int] = (),
        apart: bool = False,
    ) -> None:
        """Writes the shard of `indices` (one of `pending()`), whole or not at all, and then its entry.

        frames: [n, M, h, w, c] or, for pairs, [n, h, w, c]; labels [n], -1 if left out; aux as frames.
        left_out: indices of records that are not to be used, for the teacher diverged there; they are all zeros.
        apart: write the entry into a file of its own, since other processes write shards too; `adopt` collects them.

        Raises ValueError for another shape, or values that are not finite or too large for the dtype.
        """
        shard = np.zeros(len(indices), self.spec.record)
        shard["index"] = np.asarray(indices)
        shard["label"] = -1 if labels is None else labels
        empty = np.isin(np.asarray(indices), left_out)
        shard["frames"] = self._checked(frames, empty, "frames", indices)
        if self.spec.aux:
            assert aux is not None  # the specification says that there is one
            shard["aux"] = self._checked(aux, empty, "aux", indices)
        content = io.BytesIO()
        np.lib.format.write_array(content, shard, version=(1, 0), allow_pickle=False)
        path = self.folder / shard_name(indices.start)
        _write(path, content.getvalue())
        self.shards[indices.start] = {
            "file": path.name,
            "first": indices.start,
            "count": len(indices),
            "bytes": len(content.getvalue()),
            "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
            "left_out": [int(index) for index in np.asarray(indices)[empty]],
        }
        if apart:
            _write(path.with_suffix(".json"), json.dumps(self.shards[indices.start]).encode())
        else:
            self._write_metadata()
        _read_shard.cache_clear()

    def adopt(self) -> None:
        """Puts the entries of shards that several processes wrote into store.json."""
        entries = sorted(self.folder.glob("shard_*.json"))
        for path in entries:
            entry = json.loads(path.read_text())
            self.shards[entry["first"]] = entry
        if entries:
            self._write_metadata()
        for path in entries:
            path.unlink()

    def _checked(self, frames: np.ndarray, empty: np.ndarray, name: str, indices: range) -> np.ndarray:
        n = len(indices)
        wanted = (n, len(self.spec.label_times), *self.spec.shape)
        frames = np.asarray(frames)
        if frames.ndim == len(wanted) - 1:
            frames = frames[:, None]
        if frames.shape != wanted:
            raise ValueError(f"{self.folder}: {name} of records {indices} have shape {frames.shape}, not {wanted}.")
        with np.errstate(over="ignore"):
            cast = frames.astype(self.spec.dtype)
        cast[empty] = 0
        if not np.isfinite(cast).all():
            bad = indices.start + int(np.flatnonzero(~np.isfinite(cast).reshape(n, -1).all(axis=1))[0])
            raise ValueError(
                f"{self.folder}: {name} of record {bad} reach {np.abs(frames).max():g}, which {self.spec.dtype} does "
                "not hold; the teacher diverged (give it more steps), or store float32."
            )
        return cast

    def _write_metadata(self) -> None:
        spec = self.spec
        metadata = {"format": FORMAT, "version": VERSION, "specification": spec.to_json()}
        metadata["noise"] = noise_specification(spec.seed, spec.shape)
        metadata["shards"] = [self.shards[first] for first in sorted(self.shards)]
        _write(self.folder / FILE, (json.dumps(metadata, indent=1, sort_keys=True) + "\n").encode())

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Records by index; every shard is compared with its checksum when it is first touched.

        Raises ValueError that names the file for a shard that is missing or not what was written, and for a record
        that was left out; IndexError for an index beyond the store.
        """
        wanted = np.asarray(indices, np.int64)
        if len(wanted) and not (0 <= wanted.min() and wanted.max() < self.spec.count):
            raise IndexError(f"{self.folder} has records 0 to {self.spec.count - 1}, asked for {wanted.max()}.")
        empty = np.intersect1d(wanted, self.left_out())
        if len(empty):
            raise ValueError(f"{self.folder}: the teacher diverged at record {empty[0]}; take only those of usable().")
        found = np.zeros(len(wanted), self.spec.record)
        firsts = wanted - wanted % self.spec.shard_size
        for first in np.unique(firsts):
            here = firsts == first
            found[here] = self._shard(int(first))[wanted[here] - first]
        return Records(found["index"], found["label"], found["frames"], found["aux"] if self.spec.aux else None)

    def _shard(self, first: int) -> np.ndarray:
        path = self.folder / shard_name(first)
        if first not in self.shards or not path.exists():
            raise ValueError(f"{path} is not there: the store is not finished. {_REMAKE}")
        return _read_shard(path, self.shards[first]["sha256"], self.spec.record)

    def noise(self, indices: Sequence[int] | np.ndarray) -> jax.Array:
        """The noise that the teacher began with, [n, h, w, c] float32, before it is scaled to the prior."""
        return start_noise(self.spec.seed, indices, self.spec.shape)

    def verify(self) -> None:
        """Reads every shard. Raises ValueError that names the first which is missing or damaged."""
        for first in range(0, self.spec.count, self.spec.shard_size):
            self._shard(first)

    def left_out(self) -> list[int]:
        """Indices of the records that hold no image, since the teacher diverged there."""
        return [index for first in sorted(self.shards) for index in self.shards[first]["left_out"]]

    def usable(self) -> np.ndarray:
        """Indices of all other records, ascending."""
        return np.setdiff1d(np.arange(self.spec.count), self.left_out())

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices for training, and the last hundredth (at least one, if there are two) held out."""
        indices = self.usable()
        held_out = max(len(indices) // HELD_OUT, int(len(indices) > 1))
        return indices[: len(indices) - held_out], indices[len(indices) - held_out :]


_REMAKE = "Delete the file if it is there and run --mode=pairs again with the same settings: it is made anew."


def shard_name(first: int) -> str:
    return f"shard_{first:09d}.npy"


@functools.lru_cache(maxsize=64)
def _read_shard(path: Path, sha256: str, record: np.dtype) -> np.ndarray:
    """The records of a shard, mapped from disk, once its checksum is found right."""
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{path} is damaged: its checksum is not the one in {FILE}. {_REMAKE}")
    shard = np.load(path, mmap_mode="r", allow_pickle=False)
    if shard.dtype != record:
        raise ValueError(f"{path} has records {shard.dtype}, {FILE} says {record}. {_REMAKE}")
    return shard


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, on disk before it is under its name."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}); shards finished before it are whole. Free some space "
            "and run the same command again",
        ) from error


def create(folder: str | Path, spec: Specification) -> Store:
    """The store of `spec` in `folder`, new or to be finished: write what is `pending()`.

    Raises ValueError if the folder holds a store of another specification, and says where they differ.
    """
    folder = Path(folder)
    if (folder / FILE).exists():
        store = open_store(folder)
        old, new = _leaves(store.spec.to_json()), _leaves(spec.to_json())
        differing = [key for key in old | new if old.get(key) != new.get(key)]
        if differing:
            facts = "; ".join(f"{key} is {old.get(key)}, asked for {new.get(key)}" for key in differing)
            raise ValueError(f"{folder} holds another store: {facts}. Name another folder, or delete this one.")
        store.adopt()  # of a run of several processes that was killed
        return store
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder, spec, {})
    store._write_metadata()
    return store


def _leaves(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys: two specifications are told apart by what differs, not by all they say."""
    found: dict[str, Any] = {}
    for key, value in fields.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def open_store(folder: str | Path) -> Store:
    """The store in `folder`. Its shards are compared with their checksums when they are read.

    Raises FileNotFoundError where there is none; ValueError for metadata that is damaged, written by a newer version,
    or whose noise this program would draw otherwise.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no teacher's store ({FILE}); make one with --mode=pairs.")
    try:
        metadata = json.loads(path.read_text())
        if metadata["format"] != FORMAT or metadata["version"] != VERSION:
            raise ValueError(f"its format is {metadata['format']!r}, version {metadata['version']}")
        fields = metadata["specification"]
        tuples = {key: tuple(fields[key]) for key in ("shape", "label_times", "eval_times", "lam")}
        spec = Specification(**fields | tuples)
        shards = {
            entry["first"]: {key: entry[key] for key in _ENTRY} | {"left_out": entry.get("left_out", [])}
            for entry in metadata["shards"]
        }
        noise = metadata["noise"]
        probe = np.array(noise["probe"], np.float64)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no metadata that this program (version {VERSION}) reads: {error!r}.") from error
    ours = noise_specification(spec.seed, spec.shape)
    if ours["sha256"] != noise.get("sha256") or not np.allclose(ours["probe"], probe, rtol=0, atol=1e-4):
        raise ValueError(
            f"{path}: the noise of this store ({noise.get('prng')}, seed {spec.seed}) is not what this version of JAX "
            f"draws ({ours['prng']}, partitionable {ours['partitionable']}); its images belong to other noise. Make "
            "it anew."
        )
    return Store(Path(folder), spec, shards)


_ENTRY = ("file", "first", "count", "bytes", "sha256")


@dataclasses.dataclass(frozen=True, eq=False)
class StoreBatches:
    """Shuffled batches of a store, a `training.loop.BatchSource`: batch k is a function of (store, seed, k).

    Attributes:
      indices: of the records that are trained on, such as `store.split()[0]`.
      flip: mirror noise and frames of half of the records together.
    """

    store: Store
    indices: np.ndarray
    batch_size: int
    seed: int
    flip: bool = False

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """noise [b, h, w, c] and frames [b, M, h, w, c] in float32, label int32 [b], index int64 [b]."""
        order = Batches(self.indices[:, None, None, None], self.batch_size, self.seed)
        chosen = order.batch(step)["image"][:, 0, 0, 0]
        records = self.store.read(chosen)
        noise, frames = np.asarray(self.store.noise(chosen)), records.frames.astype(np.float32)
        if self.flip:
            coins = np.random.Generator(np.random.Philox(key=[self.seed, 2**32 + step])).random(len(chosen)) < 0.5
            noise = np.where(coins[:, None, None, None], noise[:, :, ::-1], noise)
            frames = np.where(coins[:, None, None, None, None], frames[:, :, :, ::-1], frames)
        return {"noise": noise, "frames": frames, "label": records.label, "index": chosen}
