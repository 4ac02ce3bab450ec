"""--mode=sample: images into W/<eval_folder>, resumable, with their grid, their cost and a comparison."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from builders import processes, sanity
from builders.conditions import condition_settings
from builders.config import changed
from builders.draw import blocks, group_size, sample, sample_groups, to_pixels
from builders.latent import is_latent
from builders.memory import automatic_microbatch, is_exhausted
from builders.model import Model
from builders.prompts import read_prompts
from builders.samplers import create_sampler, num_updates, predictor_corrector_settings
from modes import condition_pictures, repeat
from modes.estimate import estimate
from modes.request import Request, open_model, parse_seeds, workdir_of
from reports.animation import write_animation
from reports.compilation import CompileClock
from reports.grids import comparison_grid, image_grid
from reports.images import read_png, write_png
from reports.outputs import RECORD, RunFolder, read_settings
from reports.progress import Progress, format_seconds
from sampling.base import Sampler

LONG = 10_000  # network calls of a run before which the network is looked at


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
    gradients = f"{sampler.gradient_calls} gradient calls and " if sampler.gradient_calls else ""
    calls = str(sampler.nfe)
    if sampler.calls:
        steps, calls = f"{sampling.ode.solver} to {sampling.ode.rtol:g}", "as many as that takes"
    return (
        f"{config.model.name} ({size}), {model.image_shape[0]} px, {method}, {steps}, "
        f"{gradients}{calls} network calls an image, {count} images, seed {config.seed}, "
        f"{config.precision} on {jax.device_count()} {jax.devices()[0].platform} device(s){_shared()}"
    )


def _shared() -> str:
    return f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""


def run(request: Request) -> None:
    """Draws images into W/<eval_folder>; a run that was interrupted is finished, not repeated."""
    if request.from_image:
        request = repeat.repeated(request)
    model = open_model(request)
    if request.from_image:
        repeat.check_weights(request.from_image, model)
    config, attempts = model.config, [False]
    if config.sampling.microbatch == 0:
        attempts = [True, False]  # halved after the first, once
        config.sampling.microbatch = _stored_microbatch(request, config) or automatic_microbatch(
            model, config, len(parse_seeds(request.seeds, config.eval.num_samples))
        )
    for may_halve in attempts:
        try:
            return draw(model, request)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            halve(request, config, may_halve, error)


def _stored_microbatch(request: Request, config: ConfigDict) -> int:
    """What a run that is to be finished was begun with; 0 for a new one."""
    folder = workdir_of(request) / config.eval.eval_folder
    return read_settings(folder)["config"]["sampling"]["microbatch"] if (folder / RECORD).exists() else 0


def halve(request: Request, config: ConfigDict, may_halve: bool, error: jax.errors.JaxRuntimeError) -> None:
    """Half as many images a call, after a device ran out of memory.

    Raises OSError where that is done already, where the number was asked for, and where images were drawn with it,
    whose last bits it fixes.
    """
    folder, microbatch = workdir_of(request) / config.eval.eval_folder, config.sampling.microbatch
    begun = any(folder.glob("image_*.png"))
    if not may_halve or begun or microbatch == 1 or jax.process_count() > 1:
        raise OSError(
            f"{microbatch} images a network call (config.sampling.microbatch) do not fit into the memory of a device: "
            f"{str(error).splitlines()[0]} Set --config.sampling.microbatch={max(1, microbatch // 2)}"
            + (f" and another --eval_folder: {folder} has images drawn {microbatch} at a time." if begun else ".")
        ) from error
    logging.warning("%d images a network call do not fit into the memory of a device; halved.", microbatch)
    (folder / RECORD).unlink(missing_ok=True)
    config.sampling.microbatch = microbatch // 2


def draw(model: Model, request: Request) -> None:
    """The images of a request into its folder, once it is settled how many go into a call."""
    config = model.config
    sampler = create_sampler(model, config, record=config.eval.animation)
    seeds = parse_seeds(request.seeds, config.eval.num_samples)
    logging.info("%s; %s", plan(model, sampler, len(seeds)), estimate(model, sampler, len(seeds)))
    if request.dry_run:
        return
    first = processes.is_first()
    if first and sampler.nfe * len(seeds) >= LONG and not config.student.method and sanity.can_check(config):
        if said := sanity.warning(model):
            logging.warning("%s", said)
    folder_path = workdir_of(request) / config.eval.eval_folder
    settings = {
        "config": {key: config[key].to_dict() for key in ("sde", "model", "data", "sampling")},
        "seed": config.seed,
        "precision": config.precision,
        "weights": model.weights_hash,
    } | condition_settings(config)
    settings["config"] |= {"latent": config.latent.to_dict()} if is_latent(config) else {}
    session = {"command": sys.argv, "jax": jax.__version__, "device": jax.devices()[0].device_kind, "seeds": len(seeds)}
    session |= {"devices": jax.device_count(), "processes": jax.process_count()}
    text = {"seed": config.seed, "method": config.sampling.method, "weights": model.weights_hash}
    text |= {"config": repeat.settings_text(config)}
    prompts = read_prompts(config) if config.sampling.prompts else []
    with _shared_folder(folder_path, settings, session) as folder:
        pending = set(folder.missing(seeds, model.image_shape))
        logging.info("%d of %d images are to be drawn in %s.", len(pending), len(seeds), folder_path)
        mine = own_blocks(blocks(config, seeds), pending)
        devices, _ = group_size(config, max(1, sum(map(len, mine))))
        updates = -(-len(mine) // len(devices)) * num_updates(sampler)
        firsts = {block[0] for block in mine}
        start, memory = time.perf_counter(), None
        bar = Progress(max(1, updates), "sampling", "update", terminal=None if first else False)
        with bar as progress, CompileClock() as compiling:
            groups = sample_groups(model, sampler, config, seeds, lambda block: block[0] not in firsts, progress.update)
            for number, group in enumerate(groups):
                memory = group.memory() if number == 0 else memory  # all run one program
                sampler = sampler._replace(nfe=max(sampler.nfe, group.result.nfe))  # an adaptive solver knows it now
                drawn = group.result
                calls = [drawn.nfe] * len(group.indices) if drawn.calls is None else drawn.calls.tolist()
                for index, image, nfe in zip(group.indices, to_pixels(model, drawn.images), calls, strict=True):
                    if index in pending:
                        prompt = {"prompt": prompts[index % len(prompts)]} if prompts else {}
                        folder.write(index, image, text | prompt | {"index": index, "calls": nfe})
                if config.eval.animation and first and number == 0:
                    frames = [image_grid(to_pixels(model, frame)) for frame in group.result.denoised]
                    write_animation(folder_path / "trajectory.webp", np.stack(frames))
        seconds = {"compile": compiling.seconds, "steady": time.perf_counter() - start - compiling.seconds}
        folder.flush()
        processes.wait("images")
        if not first:
            return
        shape = model.image_shape
        processes.until_seen(lambda: [folder.image_path(index) for index in folder.missing(seeds, shape)])
        cost = {"calls": sampler.nfe, "gradient_calls": sampler.gradient_calls, "seconds": seconds}
        cost |= {"peak_memory": memory, "grid": None if sampler.grid is None else sampler.grid.tolist()}
        folder.finish(cost, caption(model, sampler))
    logging.info("%s", gain(model, sampler, len(pending), sum(seconds.values())))
    condition_pictures.write(model, seeds, folder_path, caption(model, sampler))
    if config.eval.compare and not (folder_path / "comparison.png").exists():
        write_comparison(model, sampler, seeds[:8], folder_path)


@contextlib.contextmanager
def _shared_folder(path: Path, settings: Mapping[str, Any], session: Mapping[str, Any]) -> Iterator[RunFolder]:
    """The folder of all processes. The first makes it and its record; the others come when it has."""
    if not processes.is_first():
        processes.wait("record")
    with RunFolder(path, settings, session, keeps_record=processes.is_first()) as folder:
        if processes.is_first():
            processes.wait("record")
        yield folder


def own_blocks(all_blocks: Sequence[list[int]], pending: set[int]) -> list[list[int]]:
    """The blocks that this process draws: its share of those that were not all there when the run began.

    What is there is what the first process saw: another may already see images that were drawn since.
    """
    lacking = processes.as_first_sees([not pending.isdisjoint(block) for block in all_blocks])
    return processes.share([block for block, lacks in zip(all_blocks, lacking, strict=True) if lacks])


def write_comparison(model: Model, sampler: Sampler, seeds: Sequence[int], folder: Path) -> None:
    """comparison.png: images of this run above those of config.eval.compare, from equal noise at as many levels."""
    other = changed(model.config, {"sampling.method": model.config.eval.compare})
    other.guidance.kind, other.sampling.start_image, other.sampling.start_sigma = "none", "", 0.0
    plain = dataclasses.replace(model, config=other)
    images = [read_png(folder / f"image_{index}.png").image for index in seeds]
    drawn = sample(plain, seeds=seeds)
    rows = {
        caption(model, sampler).rpartition(", seed")[0]: np.stack(images),
        f"{other.sampling.method}, {drawn.nfe} network calls an image": to_pixels(plain, drawn.images),
    }
    write_png(folder / "comparison.png", comparison_grid(rows, caption=f"equal noise, seed {other.seed}"))
    logging.info("Both samplers side by side: %s", folder / "comparison.png")


def caption(model: Model, sampler: Sampler) -> str:
    sampling = model.config.sampling
    filtered = sampling.method == "pds" and (sampling.freq_mask_path or sampling.space_mask_path)
    mode = f", {sampling.pds_mode}" if filtered else ""
    gradients = f"{sampler.gradient_calls} gradient calls and " if sampler.gradient_calls else ""
    task = f"{model.config.guidance.kind} by " if model.config.guidance.kind != "none" else ""
    return f"{task}{sampling.method}{mode}, {gradients}{sampler.nfe} network calls an image, seed {model.config.seed}"


def gain(model: Model, sampler: Sampler, count: int, seconds: float) -> str:
    """One line after the run: what it took, against the sampler the model was published with."""
    full = model.sde.num_scales * predictor_corrector_settings(model.config).steps_per_level()
    if not count:
        return "All images were there already."
    copies = model.config.model.num_times  # a student of DSNO sees as many of an image in its one call
    work = f" (the work of {copies})" if copies > 1 else ""
    fewer = full / (sampler.nfe * copies)
    return (
        f"{count} images of {sampler.nfe} network calls{work} each in {format_seconds(seconds)}; "
        f"{fewer:{',.0f' if fewer >= 100 else '.3g'}} times fewer calls than the {full} of the predictor-corrector "
        "sampler at speed_up 1."
    )
