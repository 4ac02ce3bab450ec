"""What a distilled student's file says about sampling it, put into the config."""

import numpy as np
from absl import logging
from ml_collections import ConfigDict

import sde_lib
from checkpoints import Checkpoint
from training import dsno

METHODS = ("distilled", "consistency", "dsno")
LONGEST = 512  # steps; a file that says more holds a first teacher, which any number of steps suits


def follow(config: ConfigDict, stored: Checkpoint) -> None:
    """Sets the number of steps N and the times 1, 1 - 1/N, ..., 1/N that a student of progressive distillation knows.

    Raises ValueError when another number of steps is asked for.
    """
    _follow_ours(config, stored)
    if stored.format == "dsno_torch":
        times, _ = dsno.stored_times(config.dsno.spacing, config.dsno.teacher_steps, config.dsno.num_times)
        config.dsno.head = "teacher"  # the program kept it
        become_operator(config, tuple(times))
        check(config)
    steps, asked = stored.extra.get("num_sample_steps"), config.sampling.num_steps
    if not steps:
        return
    if asked not in (0, steps) and steps <= LONGEST:
        raise ValueError(
            f"{stored.path.name} holds a student that was distilled for {steps} steps and knows no other noise levels, "
            f"but --steps asks for {asked}; leave --steps out (config.sampling.num_steps=0)."
        )
    config.sampling.num_steps = asked or steps
    with config.unlocked():
        config.sde.end_time = 1 / config.sampling.num_steps


def become_operator(config: ConfigDict, times: tuple[float, ...]) -> None:
    """Makes the config of a teacher that of an operator with points at SDE times `times`, called once with noise."""
    model, own = config.model, config.dsno
    if model.scaling != "none":
        model.told = "sigma"
    elif own.head == "teacher":
        model.sigma_data = 1.0  # the convolution that is kept puts out the image as it is
    if "head" in model:
        model.head = "single"
    model.update(scaling="none", scale_by_sigma=False, learn_sigma=False, predicts="x0")
    model.update(mixing=own.mixing, modes=own.modes, num_times=len(times))
    largest = float(sde_lib.create_sde(**config.sde.to_dict()).noise_scale(np.float64(1)))
    grid = f"{largest!r},0.0"
    config.student.update(method="dsno", num_steps=1, grid=grid, times=",".join(repr(float(time)) for time in times))
    config.sampling.update(method="dsno", num_steps=1, grid=grid, start_sigma=0.0)
    config.eval.compare = ""  # whatever sampler is compared with, it would call the network at other noise scales


def _follow_ours(config: ConfigDict, stored: Checkpoint) -> None:
    """Copies what a student's file of ours says into config.student and config.sampling; refuses other steps."""
    said = stored.extra.get("student")
    if not said:
        return
    if said["method"] == "dsno" and config.student.method != "dsno":  # the config is that of the teacher
        become_operator(config, tuple(float(part) for part in said["times"].split(",")))
    config.student.update({key: said[key] for key in config.student if key in said})
    student, asked = config.student, config.sampling.num_steps
    if config.sampling.method != student.method:
        logging.info("%s holds a student: --method=%s.", stored.path.name, student.method)
    config.sampling.update(method=student.method, grid=student.grid, num_steps=asked or student.num_steps)
    config.eval.compare = ""  # whatever sampler is compared with, it would call the network at other noise scales
    check(config)


def check(config: ConfigDict) -> None:
    """Raises ValueError when config.sampling asks for what config.student does not know, or for a student of none."""
    sampling, student = config.sampling, config.student
    if sampling.method in METHODS and student.method != sampling.method:
        trainer = "progressive_distillation" if sampling.method == "distilled" else sampling.method
        raise ValueError(
            f"--method={sampling.method} calls a student, and this file holds {student.method or 'none'}; make one "
            f"with --mode=train --config FILE:{trainer}, or choose another method."
        )
    if not student.method:
        return
    scales = student.grid.split(",")[:-1]
    known = f"noise scales {', '.join(f'{float(s):.3g}' for s in scales)} and no others"
    if sampling.method != student.method:
        raise ValueError(
            f"--method={sampling.method}: this file holds a student ({student.method}) that was trained at the "
            f"{known}; leave --method out, or sample its teacher."
        )
    n, asked = student.num_steps, sampling.num_steps
    if asked > n if student.method == "consistency" else asked not in (0, n):
        most = "at most " if student.method == "consistency" else ""
        raise ValueError(
            f"--steps={asked}: this student takes {most}{n} steps, for it was trained at the {known}; leave --steps "
            "out, or distill one for that number."
        )
    if student.guidance:
        low, high = (float(part) for part in student.guidance.split(","))
        if not low <= config.guidance.cfg_scale <= high:
            raise ValueError(
                f"config.guidance.cfg_scale={config.guidance.cfg_scale:g}: this student was told guidance scales from "
                f"{low:g} to {high:g}."
            )
    if config.guidance.kind != "none" or sampling.start_image or sampling.latents:
        raise ValueError(
            f"A student ({student.method}) goes from noise to images and takes neither guidance nor a start image; "
            "sample its teacher for these."
        )
