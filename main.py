"""Sample, train or inspect:  python main.py --config configs/ve/demo.py --workdir out/demo [--mode sample]"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

import run_lib
from builders.processes import Cluster
from configs import check, score_sde
from modes.request import SHORT_FLAGS

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, with :method behind it if wanted; keys are set by --config.section.key=value.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Holds checkpoints/; results are written below it.")
_MODE = flags.DEFINE_enum("mode", "sample", sorted(run_lib.MODES), "What to run.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Weight file or folder; else config.checkpoint.")
_OUTPUT = flags.DEFINE_string("output", "", "File that --mode=convert writes.")
_SEEDS = flags.DEFINE_string("seeds", "", "Images to draw, such as 0-63 or 3,7; else the first --num_samples.")
_FROM_IMAGE = flags.DEFINE_string("from_image", "", "An image_<i>.png of a run: draws it again.")
_FROM_MODEL = flags.DEFINE_integer("from_model", 0, "--mode=masks: from so many images that the model draws itself.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would run, and stop before compiling.")

_SWEEP = flags.DEFINE_multi_string("sweep", [], "--mode=sweep: NAME=VALUE,VALUE; repeat it for the product.")
_SHARD = flags.DEFINE_string("shard", "", "--mode=sweep: k/n takes every n-th point, for job arrays.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, as SLURM or a TPU pod starts them.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where nothing says it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes share the run; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0; with --coordinator.")
_TRAIN = flags.DEFINE_enum("train", "", ["", "ld3"], "--mode=compare: ld3 learns a schedule, too, and compares it.")
_MINUTES = flags.DEFINE_float("minutes", 10.0, "--mode=compare: about how long it may take.")

# Short flags, the published ones among them; modes/request.py says which config key each one sets.
_SHORT = [
    flags.DEFINE_string("method", None, "Sampling method (configs/methods.py)."),
    flags.DEFINE_integer("steps", None, "Number of levels or steps."),
    flags.DEFINE_float("speed_up", None, "Take num_scales / speed_up levels."),
    flags.DEFINE_string("alpha", None, "Mask strength, above 1, or auto; larger filters less."),
    flags.DEFINE_string("freq_mask_path", None, "Frequency mask: .npy, natural, power:2.0."),
    flags.DEFINE_string("space_mask_path", None, "Pixel mask: .npy."),
    flags.DEFINE_string("labels", None, "Classes of the images, in turn, such as 3,7; uniform: all; random."),
    flags.DEFINE_string("prompts", None, "File of prompts, one a line, or captions.json; images take them in turn."),
    flags.DEFINE_string("negative_prompt", None, "What classifier-free guidance leads away from."),
    flags.DEFINE_float("cfg_scale", None, "Of classifier-free guidance by the network's own null; 1 is none."),
    flags.DEFINE_string("data", None, "Images: a folder, zip, npz, TFRecords, LMDB or tfds:name."),
    flags.DEFINE_string("start_image", None, "Image or folder of images to begin from, noised."),
    flags.DEFINE_float("start_sigma", None, "Noise scale that --start_image is noised to."),
    flags.DEFINE_integer("num_samples", None, "How many images."),
    flags.DEFINE_integer("batch_size", None, "Most images held on all devices at once."),
    flags.DEFINE_string("eval_folder", None, "Folder for images, below the workdir."),
]


def cluster() -> Cluster | None:
    """How the processes of this run find one another; None for a run of one process."""
    found = Cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    return found if _DISTRIBUTED.value or found != Cluster() else None


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected {argv[1:]}: options are written --name=value.")
    request = run_lib.Request(
        config=_CONFIG.value,
        workdir=Path(_WORKDIR.value) if _WORKDIR.value else None,
        checkpoint=_CHECKPOINT.value,
        output=_OUTPUT.value,
        seeds=_SEEDS.value,
        overrides={SHORT_FLAGS[flag.name]: flag.value for flag in _SHORT if flag.value is not None},
        dry_run=_DRY_RUN.value,
        sweep=tuple(_SWEEP.value),
        shard=_SHARD.value,
        minutes=_MINUTES.value,
        train=_TRAIN.value,
        from_image=_FROM_IMAGE.value,
        from_model=_FROM_MODEL.value,
        cluster=cluster(),
    )
    run_lib.run(_MODE.value, request)


def parse(arguments: list[str]) -> list[str]:
    """absl's parser; configs written for score_sde run too, and a misspelt key is one line instead of a traceback."""
    try:
        return app.parse_flags_with_usage(score_sde.redirect(arguments))
    except (AttributeError, KeyError, FileNotFoundError, ValueError) as error:
        sys.exit(check.unknown_key(arguments) or f"--config: {error}")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    app.run(main, flags_parser=parse)
