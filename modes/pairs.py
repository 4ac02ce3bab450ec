"""--mode=pairs: noise and what a teacher makes of it, in W/pairs, for students to learn from.

    python main.py --mode=pairs --config C --workdir W --method heun --steps 35 --num_samples 512

Any sampler of the toolkit may be the teacher. The store (`data/store.py`) keeps images, not noise, which is drawn again
from (seed, index). A run that was killed goes on where it stopped and ends with the same bytes.
"""

from pathlib import Path

from absl import logging

from builders import pairs as builder
from builders import processes
from builders.draw import group_size, to_pixels
from builders.pairs import Teacher
from builders.samplers import num_updates
from data import store
from modes.estimate import estimate
from modes.request import Request, open_model, workdir_of
from modes.sample import caption
from reports.images import write_png
from reports.progress import Progress

FOLDER = "pairs"


def run(request: Request) -> None:
    """Fills W/pairs, and W/pairs_png with copies to look at if config.pairs.png asks for them.

    Raises ValueError for a folder that holds another teacher's pairs, and says where the two differ.
    """
    model = open_model(request)
    config = model.config
    if request.seeds:
        raise ValueError(f"--seeds={request.seeds}: a store holds records 0 to n - 1; say how many with --num_samples.")
    teacher = builder.create_teacher(model, config)
    spec = builder.specification(teacher, config.eval.num_samples)
    logging.info("%s", plan(teacher, spec))
    if request.dry_run:
        return
    found = open_shared(workdir_of(request) / FOLDER, spec)
    fill(teacher, found)
    if not processes.is_first():
        return
    if config.pairs.png:
        write_copies(teacher, found, workdir_of(request) / f"{FOLDER}_png")
    found = store.open_store(found.folder)
    left_out = len(found.left_out())
    if left_out:
        logging.warning("%d of %d records were left out: the teacher diverged there.", left_out, len(found))
    logging.info("%d records in %s.", len(found) - left_out, found.folder)


def open_shared(folder: Path, spec: store.Specification) -> store.Store:
    """The store of all processes: the first makes it or finds it, the others come when it is there."""
    if processes.is_first():
        found = store.create(folder, spec)
        processes.wait("store")
        return found
    processes.wait("store")
    return store.open_store(folder)


def plan(teacher: Teacher, spec: store.Specification) -> str:
    """What will be stored, how much of it, and what it costs, before anything is compiled."""
    calls, m, count = teacher.sampler.nfe, len(spec.label_times), spec.count
    what = "images" if m == 1 else f"trajectories of {m} {'x0 estimates' if spec.target == 'x0' else 'states'}"
    at = "" if m == 1 else f" at t = {', '.join(f'{time:.4g}' for time in spec.label_times)}"
    cost = f"{calls} network calls each, {calls * count} in all" if calls else "as many network calls as it takes"
    volume = spec.record.itemsize * count / 1e6
    return (
        f"{caption(teacher.model, teacher.sampler) if calls else spec.sampler['method']}: {count} {what}{at}, {cost}; "
        f"{volume:.4g} MB of {spec.dtype} in {-(-count // spec.shard_size)} shards; "
        f"{estimate(teacher.model, teacher.sampler, count)}"
    )


def fill(teacher: Teacher, found: store.Store) -> None:
    """Draws what `found` lacks, with a progress bar; of several processes each draws shards of its own."""
    pending = found.pending()
    if not pending:
        logging.info("All %d records were there already.", len(found))
        return
    processes.wait("look")  # or one would look when another has drawn already, and share out other shards
    mine, updates = processes.share(pending), num_updates(teacher.sampler)
    groups = sum(-(-len(indices) // group_size(teacher.config, len(indices))[1]) for indices in mine)
    logging.info("%d of %d records are to be drawn into %s.", sum(map(len, pending)), len(found), found.folder)
    with Progress(groups * updates, "teacher", "update") as progress:
        for indices in builder.draw(teacher, found, mine, progress.update):
            logging.debug("%s is written.", store.shard_name(indices.start))
    processes.wait("shards")
    if processes.is_first():
        processes.until_seen(lambda: _unseen(found))
        found.adopt()


def _unseen(found: store.Store) -> list[Path]:
    """Shards that other processes have written, with their entries, and that are not to be seen here yet."""
    apart = [found.folder / store.shard_name(indices.start) for indices in found.pending()]
    return [path for path in apart if not (path.exists() and path.with_suffix(".json").exists())]


def write_copies(teacher: Teacher, found: store.Store, folder: Path) -> None:
    """image_<index>.png of every record that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in found.usable():
        path = folder / f"image_{index}.png"
        if not path.exists():
            write_png(path, to_pixels(teacher.model, found.read([index]).images)[0], {"index": int(index)})
