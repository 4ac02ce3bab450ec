"""The one place where a config becomes objects, and one function a mode.

`main.py` and users call the same face: `load` a checkpoint under a config, `sample` it. Everything below this file
takes plain settings and arrays; nothing below sees a whole config.
"""

import copy
import dataclasses
import importlib.util
import json
import logging as python_logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import checkpoints
import models
import precond
import sde_lib
from array_types import Image
from checkpoints import fitting, names, native
from checkpoints import inspect as inspection
from configs import base as base_config
from configs import check, methods, score_sde
from data import create_source, prepare
from data.pipeline import Batches, open_images, to_model_range
from data.sources import Without
from masks import estimate
from masks.files import Kind, read_mask, write_mask
from models import denoiser as denoisers
from models import edm
from models.denoiser import Denoiser
from precond.stability import automatic_alpha, stability_warning
from reports.animation import write_animation
from reports.grids import comparison_grid, image_grid
from reports.images import read_png, to_uint8, write_png
from reports.outputs import RunFolder
from reports.progress import Progress, format_seconds
from sampling import base, multistep, predictor_corrector, single_step, time_grids
from sampling.base import Sampler, SampleResult
from training import loop, score_matching
from training.state import create_state

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
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@dataclasses.dataclass(frozen=True)
class Model:
    """A pretrained model ready to be sampled: the public Python face.

    `network(x, labels)`, `score(x, t)` and `denoise(y, s)` as in `models.denoiser.Denoiser`; images are [b, h, w, c] in
    the data range of the model ([-1, 1] if `config.data.centered`, else [0, 1]).
    """

    denoiser: Denoiser
    config: ConfigDict
    weights_hash: str = ""

    @property
    def sde(self) -> sde_lib.GaussianSDE:
        return self.denoiser.sde

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (h, w, c)."""
        data = self.config.data
        return data.image_size, data.image_size, data.num_channels

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.denoiser.params))

    def network(self, x: Image, labels: jax.Array) -> Image:
        return self.denoiser.network(self.denoiser.params, x, labels)

    def score(self, x: Image, t: jax.Array) -> Image:
        return self.denoiser.score(x, t)

    def denoise(self, y: Image, s: jax.Array) -> Image:
        return self.denoiser.denoise(y, s)


def create_network(config: ConfigDict):
    """The Flax module of config.model for images of config.data."""
    check.validate(config)
    sde = create_sde(config)
    discrete = isinstance(sde, sde_lib.VESDE) and config.model.scaling == "none"
    return models.create_network(
        config.model.name,
        config.model.to_dict(),
        # Under EDM's scaling the network sees data that is centred and scaled already.
        centered=config.data.centered or config.model.scaling == "edm",
        discrete_sigmas=tuple(denoisers.level_table(sde)) if discrete else (),
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
    )


def create_sde(config: ConfigDict) -> sde_lib.GaussianSDE:
    return sde_lib.create_sde(**config.sde.to_dict())


def create_denoiser(config: ConfigDict, params: Any) -> Denoiser:
    """The network of config.model under its conventions, with `params`."""
    sde = create_sde(config)
    network = _Apply(create_network(config))
    if config.model.scaling == "edm":
        scaled = edm.Scaled(network, config.model.sigma_data, config.data.centered)
        return Denoiser(params, scaled, sde, "x0", "sigma")
    if config.model.scaling != "none":
        raise ValueError(f"config.model.scaling={config.model.scaling!r} is unknown; choose 'none' or 'edm'.")
    return Denoiser(params, network, sde, config.model.predicts, denoisers.told(sde, config.model.continuous))


@dataclasses.dataclass(frozen=True)
class _Apply:
    """`(params, x, labels) -> output` of a Flax module; equal for equal modules, which share compiled samplers."""

    module: Any

    def __call__(self, params: Any, x: Image, labels: jax.Array) -> Image:
        return self.module.apply({"params": params}, x, labels)


def find_checkpoint(config: ConfigDict, workdir: str | Path | None, flag: str = "") -> Path:
    """The weight file of a run: --checkpoint, config.checkpoint, W/checkpoints/checkpoint.pth, or the only file there.

    Raises FileNotFoundError that lists the places searched, or the candidates where there are several.
    """
    if flag:
        return _existing(Path(flag), "--checkpoint")
    if config.checkpoint:
        return _existing(Path(_shipped(config.checkpoint)), "config.checkpoint")
    folder = Path(workdir or ".") / "checkpoints"
    published = folder / "checkpoint.pth"
    if published.exists():
        return published
    files = sorted(entry for entry in folder.glob("*") if not entry.name.startswith(".")) if folder.is_dir() else []
    if len(files) == 1:
        return files[0]
    if files:
        listed = ", ".join(file.name for file in files)
        raise FileNotFoundError(f"{folder} holds several files ({listed}); name one with --checkpoint.")
    raise FileNotFoundError(
        f"No weights found: give --checkpoint FILE, set config.checkpoint, or put the file at {published}."
    )


def _existing(path: Path, origin: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{origin} names {path}, which does not exist.")
    return path


def resolve_config(
    config: ConfigDict | str | Path | None, checkpoint: checkpoints.Checkpoint | None = None
) -> ConfigDict:
    """A config in our layout from ours, score_sde's, the path of either's file, or (None) the checkpoint's own."""
    if config is None:
        if checkpoint is None or checkpoint.config is None:
            raise ValueError(
                f"{checkpoint.path if checkpoint else 'The checkpoint'} does not carry its architecture; "
                "name a config with --config (see configs/)."
            )
        config = ConfigDict(checkpoint.config)
    found = load_config_file(config) if isinstance(config, str | Path) else config
    return _with_defaults(score_sde.translate(found) if score_sde.is_score_sde_layout(found) else found)


def _with_defaults(config: ConfigDict) -> ConfigDict:
    """`config` over the defaults of every key, so that a file written by an older version still has the newer keys."""
    full = base_config.get_config()
    with full.unlocked():
        full.update(config.to_dict())
    return full


def load_config_file(path: str | Path) -> ConfigDict:
    """Runs a config file, ours ("file.py" or "file.py:method") or one written for score_sde. A config is code."""
    file, _, method = str(path).partition(":")
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no config file {file} (--config).")
    if score_sde.is_foreign(file):
        return score_sde.load_foreign(file, method)
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={path}: {file} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(method) if method else module.get_config()


def _flat_and_expected(
    stored: checkpoints.Checkpoint, config: ConfigDict
) -> tuple[dict, Mapping[str, tuple[int, ...]]]:
    """The file's tensors under the network's names, and the shapes that network expects."""
    module = create_network(config)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    expected = fitting.shapes(models.param_shapes(module, shape))
    order = models.module_order(module, shape)
    return names.network_names(stored, expected, order, config.model.ema), expected


def read_params(stored: checkpoints.Checkpoint, config: ConfigDict) -> Any:
    """The network's parameter tree from a weight file; every name and shape is checked."""
    return jax.tree.map(jnp.asarray, fitting.fit(*_flat_and_expected(stored, config), stored.path))


def load(
    config: ConfigDict | str | Path | None = None,
    checkpoint: str | Path = "",
    ema: bool | None = None,
    workdir: str | Path | None = None,
) -> Model:
    """A model from a config and a weight file, ready to be sampled.

    Args:
      config: ours or score_sde's, as a ConfigDict or a path; None takes the one that the file carries.
      checkpoint: file or folder; "" follows the look-up order of `find_checkpoint`.
      ema: the averaged weights; None follows config.model.ema.
      workdir: where W/checkpoints is looked for.

    Raises FileNotFoundError or ValueError that names the file, the tensor or the key. No network is run.
    """
    resolved = None if config is None else resolve_config(config)
    stored = checkpoints.read(find_checkpoint(resolved or base_config.get_config(), workdir, str(checkpoint)))
    full = resolved or resolve_config(None, stored)
    if ema is not None:
        full.model.ema = ema
    return Model(create_denoiser(full, read_params(stored, full)), full, stored.sha256())


def create_preconditioner(
    config: ConfigDict, shape: tuple[int, int, int], levels: sde_lib.Levels
) -> precond.Preconditioner:
    """M of config.sampling: masks read and checked against the image shape, alpha resolved, skew operator added."""
    sampling = config.sampling
    if sampling.method == "pc":  # the sampler without a preconditioner, whatever masks the config names
        return precond.Identity()
    masks = {
        kind: read_mask(_shipped(sampling[f"{kind}_mask_path"]), kind, shape)
        for kind in get_args(Kind)
        if sampling[f"{kind}_mask_path"]
    }
    alpha = automatic_alpha(levels, sampling.pds_mode) if sampling.alpha == "auto" else _number(sampling.alpha)
    if sampling.alpha == "auto":
        logging.info("alpha=auto: %.3g for %d levels.", alpha, len(levels.t))
    m = precond.create_preconditioner(masks.get("freq"), masks.get("space"), alpha)
    if sampling.skew and sampling.pds_mode == "paper":
        raise ValueError("The published updates have no skew term; choose --config.sampling.pds_mode=marginal with it.")
    return precond.create_skew(sampling.skew, m, sampling.omega, shape[0], shape[1])


def _shipped(path: str) -> str:
    """`path`, or the file of this name in the repository: shipped configs work from any folder."""
    here = Path(__file__).parent / path
    return str(here) if not Path(path).exists() and here.is_file() else path


def _number(alpha: Any) -> float:
    try:
        return float(alpha)
    except ValueError:
        raise ValueError(f"--alpha={alpha!r} is neither a number nor 'auto'.") from None


def create_levels(config: ConfigDict, sde: sde_lib.GaussianSDE) -> sde_lib.Levels:
    """The noise levels of a predictor-corrector run: int(num_scales / speed_up) of them, or sampling.num_steps."""
    sampling = config.sampling
    if not sampling.speed_up > 0:
        raise ValueError(f"--speed_up={sampling.speed_up:g} must be positive.")
    n = sampling.num_steps or int(sde.num_scales / sampling.speed_up)
    # eps N stays constant, as in the published program: the last level moves up with the steps.
    end_time = sde.end_time * sde.num_scales / n if sampling.num_steps else sde.end_time * sampling.speed_up
    return sde.levels(n, min(end_time, 0.5), published=sampling.pds_mode == "paper")


def create_sampler(model: Model, config: ConfigDict, record: bool = False) -> Sampler:
    """The sampler of config.sampling on this model, checked as a whole; nothing is compiled."""
    method = config.sampling.method
    if method in ("pc", "pds"):
        return create_predictor_corrector(model, config, record)
    if method in multistep.SOLVERS or method in single_step.STEPS:
        return create_ode_sampler(model, config, record)
    known = sorted({"pc", "pds", *multistep.SOLVERS, *single_step.STEPS})
    raise ValueError(f"--method={method!r} is unknown; choose one of {known}.")


def predictor_corrector_settings(config: ConfigDict) -> predictor_corrector.PredictorCorrector:
    fields = dataclasses.fields(predictor_corrector.PredictorCorrector)
    return predictor_corrector.PredictorCorrector(**{field.name: config.sampling[field.name] for field in fields})


def create_predictor_corrector(model: Model, config: ConfigDict, record: bool = False) -> Sampler:
    """Methods pc and pds: stochastic, with or without a preconditioner."""
    levels, settings = create_levels(config, model.sde), predictor_corrector_settings(config)
    m = create_preconditioner(config, model.shape, levels)
    warning = stability_warning(levels, config.sampling.pds_mode, m)
    if warning and settings.predictor != "none":
        logging.warning("%s", warning)
    quirks = config.sampling.published_quirks
    return predictor_corrector.create(settings, model.denoiser, levels, m, model.shape, quirks, record)


def create_ode_sampler(model: Model, config: ConfigDict, record: bool = False) -> Sampler:
    """The deterministic solvers (docs/methods/solvers.md): sampling.num_steps steps on a grid that ends at noise 0."""
    sampling, sde = config.sampling, model.sde
    n = sampling.num_steps or int(sde.num_scales / sampling.speed_up)
    s_max, s_min = float(sde.noise_scale(np.float64(1.0))), float(sde.noise_scale(np.float64(sde.end_time)))
    grid = time_grids.make(sampling.grid or "edm", n, s_max, s_min, sde)
    prior = sde.prior_sigma / float(sde.alpha(np.float64(1.0)))
    if sampling.method in single_step.STEPS:
        return single_step.create(sampling.method, model.denoiser, grid, model.shape, prior, record)
    order = {"order": sampling.order} if sampling.order else {}
    try:
        rows = multistep.table(sampling.method, grid, **order)
    except TypeError:
        raise ValueError(f"--method={sampling.method} has one order only; leave config.sampling.order at 0.") from None
    return multistep.create(rows, model.denoiser, model.shape, prior, record)


def num_updates(sampler: Sampler) -> int:
    """Rows of the sampler's table: turns of its loop."""
    return len(jax.tree.leaves(sampler.rows)[0])


def image_keys(seed: int, indices: Sequence[int]) -> jax.Array:
    """The key of each image: fold_in(key(config.seed), index). Its start noise is normal(key)."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(indices, jnp.uint32))


class Group(NamedTuple):
    """The images of one run of the compiled sampler."""

    indices: list[int]  # of the images, without padding
    result: SampleResult


def _group(config: ConfigDict, count: int) -> tuple[list[jax.Device], int]:
    """The devices that `count` images keep busy, and how many images they take at once."""
    microbatch = config.sampling.microbatch
    if microbatch < 1:
        raise ValueError(f"config.sampling.microbatch={microbatch} must be at least 1.")
    # Batch-mean step sizes tie the images of a group to one another: they stay on one device.
    limit = 1 if config.sampling.step_norm == "batch" else max(1, config.eval.batch_size // microbatch)
    devices = jax.devices()[: min(limit, -(-count // microbatch), jax.device_count())]
    return devices, microbatch * len(devices)


def sample_groups(
    model: Model,
    sampler: Sampler,
    config: ConfigDict,
    seeds: Sequence[int],
    skip: Callable[[list[int]], bool] = lambda indices: False,
    on_steps: Callable[[int], None] = lambda steps: None,
) -> Iterator[Group]:
    """Runs `sampler` for the images `seeds`, group by group.

    A group is one call of the program: `sampling.microbatch` images on each device, the last padded. Groups are cut
    from the whole list whatever was done before, so that a resumed run computes the same bits. `skip(indices)` leaves
    a group out, `on_steps(n)` reports n steps done.
    """
    devices, size = _group(config, len(seeds))
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
    for start in range(0, len(seeds), size):
        indices = list(seeds[start : start + size])
        if skip(indices):
            continue
        padded = indices + [indices[-1]] * (size - len(indices))
        operands, state = base.begin_on(mesh, sampler, image_keys(config.seed, padded))
        records, before = [], 0
        chunks = base.iterate_chunks(sampler.step, operands, state, sampler.rows, config.sampling.chunk)
        for state, record, done in chunks:
            jax.block_until_ready(state)  # or the bar would show what was asked for, not what is done
            records.append(record)
            on_steps(done - before)
            before = done
        yield Group(indices, _result(sampler, state, records, len(indices)))


def _result(sampler: Sampler, state: Any, records: list[Any], count: int) -> SampleResult:
    images = np.asarray(sampler.image(state))[:count]
    if not jax.tree.leaves(records):
        return SampleResult(images, sampler.nfe, sampler.gradient_calls)
    trajectory, denoised = (np.concatenate([np.asarray(part[k]) for part in records])[:, :count] for k in (0, 1))
    return SampleResult(images, sampler.nfe, sampler.gradient_calls, trajectory, denoised)


def sample(
    model: Model,
    sampling: ConfigDict | Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(16),
    record: bool = False,
) -> SampleResult:
    """Images number `seeds` of a model.

    Args:
      sampling: changes to config.sampling, such as {"method": "pds", "speed_up": 20}.
      seeds: indices under config.seed; image i depends on (config.seed, i, settings) alone.
      record: also return the states and the x0 estimates after every update.

    Returns images [n, h, w, c] in the model's data range, as NumPy arrays, with the count of network calls.
    """
    config = copy.deepcopy(model.config)
    with config.unlocked():
        config.sampling.update(dict(sampling or {}))
    sampler = create_sampler(model, config, record)
    results = [group.result for group in sample_groups(model, sampler, config, seeds)]
    joined = [
        None if results[0][k] is None else np.concatenate([r[k] for r in results], axis)
        for k, axis in ((0, 0), (3, 1), (4, 1))
    ]
    return SampleResult(joined[0], sampler.nfe, sampler.gradient_calls, *joined[1:])


# --- Modes: what `main.py --mode=...` runs. Each takes a Request. -----------------------------------------------------


class Request(NamedTuple):
    """The command line, after flags have been put into the config."""

    config: ConfigDict | None  # None: --config was left out
    workdir: Path | None
    checkpoint: str = ""
    output: str = ""
    seeds: str = ""
    overrides: Mapping[str, Any] = {}  # config keys set by short flags
    dry_run: bool = False


def _open(request: Request) -> Model:
    """The model of a request, with the short flags applied to whichever config it has."""
    model = load(request.config, request.checkpoint, workdir=request.workdir)
    apply_overrides(model.config, request.overrides)
    return model


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Sets dotted keys; a "sampling.method" that names a method of configs/methods.py applies the whole of its edit."""
    for key, value in overrides.items():
        if key == "sampling.method" and value in methods.METHODS:
            methods.apply(config, value)
        else:
            config.update_from_flattened_dict({key: value})


def _workdir(request: Request) -> Path:
    if request.workdir is None:
        raise ValueError("--workdir is missing: name the folder that results are written to.")
    return request.workdir


def parse_seeds(text: str, count: int) -> list[int]:
    """ "0-63", "3,7" or "0-3,9" -> the indices; "" -> the first `count`."""
    if not text:
        if count < 1:
            raise ValueError(f"--num_samples={count} must be at least 1.")
        return list(range(count))
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and (not high.isdecimal() or int(high) < int(low))):
            raise ValueError(f"--seeds={text!r}: {part!r} is neither a number nor a range such as 0-63.")
        seeds += range(int(low), int(high if dash else low) + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={text!r} names an image twice.")
    return seeds


def plan(model: Model, sampler: Sampler, count: int) -> str:
    """One line before anything is compiled: what will run, and what it costs."""
    sampling, config = model.config.sampling, model.config
    masks = [kind for kind in ("freq", "space") if sampling[f"{kind}_mask_path"]]
    how = f"pds_mode {sampling.pds_mode}, masks {'+'.join(masks) or 'none'}, alpha {sampling.alpha}"
    method = f"{sampling.method} ({how})" if masks and sampling.method == "pds" else sampling.method
    size = f"{model.num_params / 1e6:.2f} M parameters"
    steps = f"{num_updates(sampler)} steps"
    if sampling.method in ("pc", "pds"):
        steps = f"{num_updates(sampler) // predictor_corrector_settings(config).steps_per_level()} levels"
    return (
        f"{config.model.name} ({size}), {model.shape[0]} px, {method}, {steps}, "
        f"{sampler.nfe} network calls an image, {count} images, seed {config.seed}, "
        f"{config.precision} on {jax.device_count()} {jax.devices()[0].platform} device(s)"
    )


def run_sample(request: Request) -> None:
    """Draws images into W/<eval_folder>; a run that was interrupted is finished, not repeated."""
    model = _open(request)
    config = model.config
    sampler = create_sampler(model, config, record=config.eval.animation)
    seeds = parse_seeds(request.seeds, config.eval.num_samples)
    logging.info("%s", plan(model, sampler, len(seeds)))
    if request.dry_run:
        return
    folder_path = _workdir(request) / config.eval.eval_folder
    settings = {
        "config": {key: config[key].to_dict() for key in ("sde", "model", "data", "sampling")},
        "seed": config.seed,
        "precision": config.precision,
        "weights": model.weights_hash,
    }
    session = {"command": sys.argv, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "seeds": len(seeds)}
    text = {"seed": config.seed, "method": config.sampling.method, "calls": sampler.nfe, "weights": model.weights_hash}
    with RunFolder(folder_path, settings, session) as folder:
        pending = set(folder.missing(seeds, model.shape))
        logging.info("%d of %d images are to be drawn in %s.", len(pending), len(seeds), folder_path)
        times = [time.perf_counter()]
        _, size = _group(config, len(seeds))
        todo = sum(bool(pending.intersection(seeds[i : i + size])) for i in range(0, len(seeds), size))
        with Progress(max(1, todo * num_updates(sampler)), "sampling", "update") as progress:
            for group in sample_groups(model, sampler, config, seeds, pending.isdisjoint, progress.update):
                times.append(time.perf_counter())
                for index, image in zip(group.indices, to_pixels(model, group.result.images), strict=True):
                    if index in pending:
                        folder.write(index, image, text | {"index": index})
                if config.eval.animation and len(times) == 2:
                    frames = [image_grid(to_pixels(model, frame)) for frame in group.result.denoised]
                    write_animation(folder_path / "trajectory.webp", np.stack(frames))
        seconds = _seconds(times)
        cost = {"calls": sampler.nfe, "gradient_calls": sampler.gradient_calls, "seconds": seconds}
        folder.finish(cost, caption(model, sampler))
    logging.info("%s", gain(model, sampler, len(pending), sum(seconds.values())))
    if config.eval.compare and not (folder_path / "comparison.png").exists():
        write_comparison(model, sampler, seeds[:8], folder_path)


def write_comparison(model: Model, sampler: Sampler, seeds: Sequence[int], folder: Path) -> None:
    """comparison.png: images of this run above those of config.eval.compare, from equal noise at as many levels."""
    other = copy.deepcopy(model.config)
    apply_overrides(other, {"sampling.method": model.config.eval.compare})
    plain = dataclasses.replace(model, config=other)
    images = [read_png(folder / f"image_{index}.png").image for index in seeds]
    drawn = sample(plain, seeds=seeds)
    rows = {
        caption(model, sampler).rpartition(", seed")[0]: np.stack(images),
        f"{other.sampling.method}, {drawn.nfe} network calls an image": to_pixels(plain, drawn.images),
    }
    write_png(folder / "comparison.png", comparison_grid(rows, caption=f"equal noise, seed {other.seed}"))
    logging.info("Both samplers side by side: %s", folder / "comparison.png")


def to_pixels(model: Model, images: np.ndarray) -> np.ndarray:
    """Images in the model's data range to uint8, rounded and clamped."""
    return to_uint8((images + 1) / 2 if model.config.data.centered else images)


def _seconds(times: list[float]) -> dict[str, float]:
    """Compile and steady seconds: what the first group took beyond the median of the others is compilation."""
    groups = np.diff(times)
    if len(groups) < 2:
        return {"compile": 0.0, "steady": float(groups.sum())}
    steady = float(np.median(groups[1:]))
    return {"compile": max(0.0, float(groups[0]) - steady), "steady": float(groups[1:].sum()) + min(groups[0], steady)}


def caption(model: Model, sampler: Sampler) -> str:
    sampling = model.config.sampling
    filtered = sampling.method == "pds" and (sampling.freq_mask_path or sampling.space_mask_path)
    mode = f", {sampling.pds_mode}" if filtered else ""
    return f"{sampling.method}{mode}, {sampler.nfe} network calls an image, seed {model.config.seed}"


def gain(model: Model, sampler: Sampler, count: int, seconds: float) -> str:
    """One line after the run: what it took, against the sampler the model was published with."""
    full = model.sde.num_scales * predictor_corrector_settings(model.config).steps_per_level()
    return (
        f"{count} images of {sampler.nfe} network calls each in {format_seconds(seconds)}; "
        f"{full / sampler.nfe:.3g} times fewer calls than the {full} of the predictor-corrector sampler at speed_up 1."
    )


def run_masks(request: Request) -> None:
    """Estimates frequency and pixel masks from config.data.source into W/masks/{freq,space}.npy."""
    config, folder = resolve_config(request.config), _workdir(request) / "masks"
    source = create_source(_source_path(config))
    chunks = estimate.stream(source, config.data.image_size, config.data.num_channels)
    moments = estimate.collect(_counted(chunks, len(source), "estimating masks"))
    freq, space = estimate.masks_from(moments)
    facts = {"n": moments.n, "data": source.name, "range": [0, 1]}
    write_mask(folder / "freq.npy", freq, facts | {"formula": "log(1 + mean |F x|^2)"})
    write_mask(folder / "space.npy", space, facts | {"formula": "mean x^2"})
    logging.info("Masks of %d images are in %s.", moments.n, folder)


def _counted(chunks: Iterator[np.ndarray], total: int, what: str) -> Iterator[np.ndarray]:
    with Progress(total, what, "image") as progress:
        for chunk in chunks:
            yield chunk
            progress.update(len(chunk))


def _source_path(config: ConfigDict) -> str:
    if not config.data.source:
        raise ValueError("config.data.source is empty: name a folder, zip, npz or tfds folder of images.")
    return config.data.source


def run_prepare(request: Request) -> None:
    """Packs config.data.source once, at the config's size, as a data set under W/data that needs no decoding."""
    config = resolve_config(request.config)
    source = create_source(_source_path(config))
    path = prepare.prepare(source, config.data.image_size, _workdir(request) / "data", config.data.num_channels)
    logging.info("Wrote %s; use it as --config.data.source.", path)


def run_convert(request: Request) -> None:
    """Writes the weights of any readable checkpoint as this toolkit's safetensors, with their config inside."""
    if not request.output:
        raise ValueError("--output is missing: name the .safetensors file to write.")
    model = _open(request)
    stored = {"source": Path(request.checkpoint or model.config.checkpoint).name, "source_sha256": model.weights_hash}
    params = jax.tree.map(np.asarray, model.denoiser.params)
    native.write(request.output, params, json.loads(model.config.to_json_best_effort()), stored)
    logging.info("Wrote %s.", request.output)


def run_inspect(request: Request) -> None:
    """Says what is in a weight file and, with a config, whether its network fits."""
    config = None if request.config is None else resolve_config(request.config)
    stored = checkpoints.read(find_checkpoint(config or base_config.get_config(), request.workdir, request.checkpoint))
    print(inspection.describe(stored))
    if config is None and stored.config is not None and stored.format == "native":
        config = resolve_config(None, stored)
    if config is not None:
        differences = fitting.compare(*_flat_and_expected(stored, config))
        verdict = "fits." if differences.fits() else f"does not fit:\n{differences.report()}"
        print(f"\nThe network of the config {verdict}")


def run_train(request: Request) -> None:
    """Trains config.model on config.data.source by denoising score matching; a killed run resumes bit for bit."""
    config, workdir = resolve_config(request.config), _workdir(request)
    apply_overrides(config, request.overrides)
    training = config.training
    module = create_network(config)
    # Found before minutes are spent: nonsense in these sections.
    optimizer = loop.create_optimizer(num_steps=training.num_steps, **config.optim.to_dict())
    keys = [field.name for field in dataclasses.fields(loop.LoopSettings)]
    settings = loop.LoopSettings(**{key: training[key] for key in keys})
    matching = score_matching.ScoreMatching(
        weighting=training.weighting,
        noise_levels=training.noise_levels,
        lognormal_mean=training.lognormal_mean,
        lognormal_std=training.lognormal_std,
        lognormal_share=training.lognormal_share,
        reduce_mean=training.reduce_mean,
        sigma_data=config.model.sigma_data,
        centered=config.data.centered,
        end_time=1e-5,
    )
    source = create_source(_source_path(config), config.data.split)
    if config.data.holdout:
        source = Without(source, config.data.holdout)
    images, labels = open_images(source, config.data.image_size, config.data.num_channels)
    shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
    dummy = jnp.zeros((1, *shape)), jnp.ones((1,))
    if request.checkpoint:
        # Goes on from given weights with fresh optimiser moments; a saved state in the workdir wins.
        params = load(config, request.checkpoint).denoiser.params
    else:
        params = jax.jit(module.init)(jax.random.key(config.seed), *dummy)["params"]
    template = create_denoiser(config, None)

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        x0 = to_model_range(batch["image"], config.data.centered)
        return score_matching.loss(matching, dataclasses.replace(template, params=params), x0, keys)

    logging.info(
        "Training %.2f M parameters on %d images (%s), %d updates of %d images.",
        sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
        len(images),
        source.name,
        settings.num_steps,
        settings.batch_size,
    )

    def snapshot(state: loop.TrainState) -> None:
        """The averaged weights as a file of their own, and a grid of samples drawn with them."""
        path = workdir / "checkpoints" / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        averaged = jax.tree.map(np.asarray, state.ema_params)
        native.write(path, averaged, json.loads(config.to_json_best_effort()), {"step": int(state.step)}, half=True)
        model = Model(create_denoiser(config, jax.tree.map(jnp.asarray, averaged)), config)
        # A plain sampler, so that what is seen is the network.
        drawn = sample(model, {"method": "pc", "num_steps": 50, "corrector": "none"}, range(16))
        write_png(workdir / "samples" / f"step_{int(state.step)}.png", image_grid(to_pixels(model, drawn.images)))

    (workdir / "samples").mkdir(parents=True, exist_ok=True)
    with Progress(settings.num_steps, "training", "update") as progress:
        last = [0]

        def on_progress(step: int, loss: float) -> None:
            progress.update(step - last[0])
            last[0] = step

        state = loop.train(
            loss,
            optimizer,
            settings,
            create_state(params, optimizer),
            Batches(images, settings.batch_size, config.seed, config.data.random_flip, labels),
            config.seed,
            workdir,
            snapshot,
            on_progress,
        )
    snapshot(state)


MODES: dict[str, Callable[[Request], None]] = {
    "sample": run_sample,
    "train": run_train,
    "masks": run_masks,
    "prepare": run_prepare,
    "convert": run_convert,
    "inspect": run_inspect,
}


def run(mode: str, request: Request) -> None:
    """What `main.py` calls: JAX set up, then the mode; a user's mistake is one line, not a traceback."""
    config = request.config
    configure_jax(config.precision if config is not None and "precision" in config else "float32")
    try:
        MODES[mode](request)
    except (ValueError, FileNotFoundError, OSError, FloatingPointError) as error:
        if os.environ.get("DEBUG"):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
