"""From config.pairs and a sampler to a teacher's store: what it will hold, and its shards drawn one by one."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from builders import solvers
from builders.conditions import condition_settings
from builders.draw import sample_groups
from builders.grids import create_grid, prior_scale
from builders.guidance import create_condition
from builders.model import Model
from builders.samplers import class_labels, create_sampler, num_updates
from data import store
from sampling import learned
from sampling.base import Sampler, SampleResult, TimeGrid


class Points(NamedTuple):
    """Which points of the teacher's path are kept; none of its fields matter for pairs."""

    updates: np.ndarray  # numbers of the updates that the frames are taken from, [M]
    label_times: tuple[float, ...]  # SDE time at which each arrives, decreasing; the last one is 0
    eval_times: tuple[float, ...] = ()  # SDE time of the network call behind each x0 estimate
    lam: tuple[float, ...] = ()  # log(alpha/sigma) there


class Teacher(NamedTuple):
    """A sampler whose results are to be stored."""

    model: Model
    config: ConfigDict
    sampler: Sampler
    path: Points
    labels: np.ndarray | None  # class of each image in turn

    @property
    def whole_path(self) -> bool:
        """More than the image is kept."""
        return len(self.path.label_times) > 1


def create_teacher(model: Model, config: ConfigDict) -> Teacher:
    """The sampler of config.sampling as a teacher. Nothing of it is compiled.

    Raises ValueError for runs that do not begin from noise alone, and for a path that the sampler does not have.
    """
    sampling, wanted = config.sampling, tuple(config.pairs.label_times)
    for key, value in (("--start_image", sampling.start_image), ("config.sampling.latents", sampling.latents)):
        if value:
            raise ValueError(
                f"{key}={value}: pairs begin from noise that is drawn again from (seed, index) and never stored; leave "
                f"{key} out."
            )
    sampler = create_sampler(model, config, record=bool(wanted))
    path = _path(model, config, sampler, wanted) if wanted else Points(np.zeros(0, np.int64), (0.0,))
    labels = class_labels(config)
    if labels is None:
        labels = create_condition(model, config).labels
    return Teacher(model, config, sampler, path, labels)


def _path(model: Model, config: ConfigDict, sampler: Sampler, wanted: tuple[float, ...]) -> Points:
    """The updates that arrive nearest to the times asked for, and the times at which they do."""
    key = f"config.pairs.label_times={wanted}"
    if any(not 0 <= time < 1 for time in wanted) or wanted[-1] != 0 or any(np.diff(wanted) >= 0):
        raise ValueError(f"{key} must decrease from below 1 to 0, the image, such as (0.75, 0.5, 0.25, 0.0).")
    if config.sampling.method not in solvers.METHODS:
        raise ValueError(
            f"{key}: --method={config.sampling.method} has no path along a grid; choose one of {solvers.METHODS}, or "
            "leave the times out and store images alone."
        )
    grid = create_grid(model, config, model.denoiser)
    if num_updates(sampler) != grid.num_steps:
        raise ValueError(f"{key}: --method={config.sampling.method} goes back and forth on its grid; choose another.")
    times = sde_times(model, grid)
    updates = np.array([np.abs(times[1:] - time).argmin() for time in wanted])
    if len(set(updates)) < len(updates):
        raise ValueError(
            f"{key}: {grid.num_steps} steps do not pass that many points there, only the times "
            f"{', '.join(f'{time:.3g}' for time in times[1:])}; take more --steps or other times."
        )
    label_times = tuple(float(time) for time in times[1:][updates])
    if config.pairs.target == "state":
        return Points(updates, label_times)
    lam = -np.log(grid.s_model[updates])
    return Points(updates, label_times, tuple(map(float, times[updates])), tuple(map(float, lam)))


def sde_times(model: Model, grid: TimeGrid) -> np.ndarray:
    """SDE times of the grid's points, [N + 1] float64; 0 where no noise is left."""
    s = np.asarray(grid.s, np.float64)
    return np.where(s > 0, np.asarray(model.sde.time(np.where(s > 0, s, s[0])), np.float64), 0.0)


def specification(teacher: Teacher, count: int) -> store.Specification:
    """Everything that fixes the bytes of the store of `count` records."""
    model, config, path = teacher.model, teacher.config, teacher.path
    sampling = _json(config.sampling.to_dict())
    del sampling["chunk"]  # it changes no bit
    s_max = np.array([float(model.sde.noise_scale(np.float64(1.0))), 0.0])
    guidance = conditions(config, teacher.labels)
    return store.Specification(
        shape=model.shape,
        count=count,
        seed=config.seed,
        teacher={
            "name": config.model.name,
            "sha256": model.weights_hash,
            "predicts": model.denoiser.predicts,
            "sde": learned.describe_sde(model.sde),
            "prior_scale": prior_scale(model.sde, TimeGrid(s_max, s_max)),
            "data_range": list(model.data_range),
            "precision": config.precision,
        },
        sampler=sampling | {"calls": teacher.sampler.nfe},  # 0: an adaptive solver, which takes what it needs
        label_times=path.label_times,
        eval_times=path.eval_times,
        lam=path.lam,
        target=config.pairs.target if teacher.whole_path else "x0",
        guidance=guidance,
        dtype=config.pairs.dtype,
        shard_size=config.pairs.shard_size,
    )


def conditions(config: ConfigDict, labels: np.ndarray | None) -> dict[str, Any]:
    """What a store says of the conditions of its images: guidance, files, classes; {} where there are none."""
    found = _json(condition_settings(config))
    if labels is not None:
        drawn = config.sampling.labels == "random"  # by the seed, which is stored
        found["labels"] = "random" if drawn else [int(label) for label in labels]
    return found


def _json(value: Any) -> Any:
    """Settings as JSON has them, which knows no infinity."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def draw(
    teacher: Teacher,
    found: store.Store,
    pending: Sequence[range],
    on_updates: Callable[[int], None] = lambda updates: None,
) -> Iterator[range]:
    """Draws and writes the shards `pending` of those that are missing, yielding the indices of each when it is on disk.

    Records whose frames are not finite are left out, and so is nothing else. Raises ValueError when a whole shard is
    lost that way, or when frames do not fit the store's dtype.
    """
    model, config = teacher.model, teacher.config
    for indices in pending:
        groups = sample_groups(model, teacher.sampler, config, indices, on_steps=on_updates)
        frames = np.concatenate([_frames(teacher, group.result) for group in groups])
        diverged = ~np.isfinite(frames).reshape(len(frames), -1).all(axis=1)
        if diverged.all():
            raise ValueError(
                f"All images {indices.start} to {indices.stop - 1} of the teacher (--method={config.sampling.method}) "
                "are not finite; give it more --steps, and look at a few images with --mode=sample."
            )
        labels = None if teacher.labels is None else _in_turn(teacher.labels, indices)
        found.write(indices, frames, labels, left_out=np.asarray(indices)[diverged], apart=jax.process_count() > 1)
        yield indices


def _frames(teacher: Teacher, result: SampleResult) -> np.ndarray:
    """[b, M, h, w, c] of a group: the image, and before it what the path has at the times of the others."""
    if not teacher.whole_path:
        return result.images[:, None]
    states = teacher.config.pairs.target == "state"
    path = np.swapaxes((result.trajectory if states else result.denoised)[teacher.path.updates], 0, 1)
    return np.concatenate([path[:, :-1], result.images[:, None]], axis=1)


def _in_turn(labels: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    return labels[np.asarray(indices) % len(labels)]
