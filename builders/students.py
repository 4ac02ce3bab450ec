"""What a distilled student's file says about sampling it, put into the config."""

from ml_collections import ConfigDict

from checkpoints import Checkpoint

LONGEST = 512  # steps; a file that says more holds a first teacher, which any number of steps suits


def follow(config: ConfigDict, stored: Checkpoint) -> None:
    """Sets the number of steps N and the times 1, 1 - 1/N, ..., 1/N that a student of progressive distillation knows.

    Raises ValueError when another number of steps is asked for.
    """
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
