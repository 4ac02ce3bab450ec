"""Learned schedules against the best unlearned ones on the demo checkpoint (docs/methods/ld3.md).

python -m benchmarks.ld3_table --workdir out/ld3_table [--calls 5,10,3,8] [--updates 80] [--n 64] [--n_quality 256]
    [--page docs/methods/ld3.md]

First the unlearned solvers on their grids, then everything in `LEARNED`, most telling first. The distance is the root
mean square to the end of the same trajectory, drawn by Heun's method with 199 network calls from the same noise, on
images that no schedule was learned from or chosen by. Rows, pairs, schedules and images are kept in W: a run that is
stopped or repeated goes on where it was.
"""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging

import run_lib
from benchmarks.distances import distance, draw, edited, program
from builders import ld3 as builder
from builders.config import apply_overrides
from builders.grids import create_grid
from metrics import reference
from modes import train_ld3
from reports import rows
from reports.atomic import write_text

_WORKDIR = flags.DEFINE_string("workdir", "out/ld3_table", "Rows, schedules and images go here.")
_CONFIG = flags.DEFINE_string("model_config", "configs/ve/demo.py", "The model.")
_REFERENCE = flags.DEFINE_string("reference", "demo/flowers32_reference.npz", "Statistics of real images.")
_CALLS = flags.DEFINE_list("calls", ["5", "10", "3", "8"], "Network calls an image.")
_UPDATES = flags.DEFINE_integer("updates", 80, "Of Adam, up to 5 calls; half as many above.")
_N = flags.DEFINE_integer("n", 64, "Images of a distance.")
_N_QUALITY = flags.DEFINE_integer("n_quality", 256, "Images for Frechet distance and spectrum; 0: neither.")
_PAGE = flags.DEFINE_string("page", "", "Markdown page whose section ld3 is rewritten.")
_UNLEARNED = flags.DEFINE_bool("unlearned", True, "Search the best unlearned solver and grid first.")

SOLVERS: dict[str, dict[str, Any]] = {
    "dpmpp 2M": {"sampling.method": "dpmpp", "sampling.order": 2},
    "unipc": {"sampling.method": "unipc"},
    "ipndm_v": {"sampling.method": "ipndm_v", "sampling.order": 3},
    "plms2": {"sampling.method": "plms2"},
    "deis": {"sampling.method": "deis", "sampling.order": 3},
    "plms4": {"sampling.method": "plms4"},
    "ghvb": {"sampling.method": "ghvb"},
}
SHORTEST = {"plms4": 4, "ghvb": 4}  # steps that their orders need
GRIDS = ("edm", "logsnr", "time_cubic", "dmn", "gits")


class Learned(NamedTuple):
    """One run of --mode=train; a preset of "" is the demo's own, 8 updates of Gauss-Newton."""

    calls: int
    what: str
    preset: str = "adam"
    seed: int = 0

    @property
    def label(self) -> str:
        """Of its row."""
        return " ".join(filter(None, (self.what, self.preset)))


LEARNED = (
    *(Learned(calls, what) for calls in (5, 10) for what in ("ld3", "gs", "s4s")),
    Learned(5, "ld3", "paper"),
    *(Learned(calls, what, seed=1) for calls in (5, 10) for what in ("ld3", "gs", "s4s")),
    *(Learned(calls, what) for calls in (3, 8) for what in ("ld3", "gs", "s4s")),
    *(Learned(calls, "ld3", "paper") for calls in (10, 3, 8)),
    *(Learned(calls, "ld3", "") for calls in (3, 5, 8, 10)),
)


def scales_of(model: run_lib.Model, folder: Path, grid: str, steps: int) -> str:
    """The noise scales that "gits" and "dmn" find for this many steps, searched once and kept; others by name."""
    if grid not in ("gits", "dmn"):
        return grid
    kept = folder / f"{grid}_{steps}.txt"
    if not kept.exists():
        changed = {"sampling.grid": grid, "sampling.num_steps": steps, "sampling.gits_images": 16}
        searching = edited(model, changed | {"sampling.method": "ddim"})
        found = create_grid(searching, searching.config, model.denoiser)
        write_text(kept, ",".join(f"{value:#.9g}" for value in found.s))
    return kept.read_text()


LONG = {"sampling.method": "heun", "sampling.num_steps": 100, "sampling.grid": "edm"}  # 199 calls


def teacher_images(model: run_lib.Model, folder: Path, compiled: set[frozenset], count: int) -> Any:
    return draw(model, LONG, count, folder / "reference.npz", compiled)


def measure_unlearned(model: run_lib.Model, folder: Path, calls: int, compiled: set[frozenset]) -> None:
    """Every solver on every grid by its distance; 32 images are enough to choose."""
    exact = teacher_images(model, folder, compiled, 32).images
    known = {(row["solver"], row["grid"], row["calls"]) for row in rows.read_rows(folder / "unlearned.jsonl")}
    for name, edits in SOLVERS.items():
        for grid in GRIDS:
            if (name, grid, calls) in known:
                continue
            chosen = edits | {"sampling.num_steps": calls, "sampling.grid": scales_of(model, folder, grid, calls)}
            if SHORTEST.get(name, 1) > calls:
                continue
            drawn = draw(model, chosen, 32, folder / f"{name.replace(' ', '_')}_{grid}_{calls}.npz", compiled)
            row = {"solver": name, "grid": grid, "calls": calls} | distance(drawn.images, exact) | {"n": 32, "seed": 0}
            rows.append_row(folder / "unlearned.jsonl", row | circumstances(model))
            logging.info("%s", row)


def best(folder: Path, calls: int, grid: str = "") -> dict[str, Any] | None:
    """The unlearned row of these calls with the least distance, of one grid or of any."""
    found = [row for row in rows.read_rows(folder / "unlearned.jsonl") if row["calls"] == calls]
    chosen = [row for row in found if grid in ("", row["grid"])]
    return min(chosen, key=lambda row: row["distance"]) if chosen else None


def learning_config(run: Learned) -> Any:
    config = run_lib.load_config_file(f"{_CONFIG.value}:{run.what}")
    apply_overrides(config, {"sampling.num_steps": run.calls, "sampling.gits_images": 16, "seed": run.seed})
    if run.preset == "paper":
        config.ld3.update(preset="paper", radius=1.0, optimizer="adam")
    elif run.preset == "adam":
        config.ld3.update(optimizer="adam", batch_size=8, valid_every=5)
        config.training.num_steps = _UPDATES.value // (1 if run.calls <= 5 else 2)
    return config


def learn(model: run_lib.Model, folder: Path, run: Learned) -> tuple[Path, float]:
    """The schedule of one run of --mode=train, and the minutes it took without the teacher's."""
    config = learning_config(run)
    workdir = folder / f"{run.label.replace(' ', '_')}_{run.calls}_seed{run.seed}"
    pairs = folder / f"pairs_seed{run.seed}"
    builder.create_pairs(model, config, pairs)
    config.ld3.pairs = str(pairs.resolve())
    start = time.perf_counter()
    train_ld3.train(config, workdir)
    minutes = (time.perf_counter() - start) / 60
    return workdir / "ld3" / f"{run.what}_{run.calls}.json", minutes


def measure(model: run_lib.Model, folder: Path, facts: dict[str, Any], edits: dict[str, Any], compiled: set) -> None:
    """A row of the table: distance, Frechet distance and spectrum of one sampler."""
    name = "_".join(str(facts[key]) for key in ("what", "calls", "seed")).replace(" ", "_").replace("/", "_")
    exact = teacher_images(model, folder, compiled, _N.value).images
    drawn = draw(model, edits, max(_N.value, _N_QUALITY.value), folder / f"{name}.npz", compiled)
    row = facts | distance(drawn.images[: _N.value], exact) | {"n_distance": _N.value, "n": len(drawn.images)}
    if _N_QUALITY.value:
        pixels = run_lib.to_pixels(model, drawn.images)
        row |= reference.scores(pixels, reference.load_reference(_REFERENCE.value))
    rows.append_row(folder / "rows.jsonl", row | circumstances(model))
    logging.info("%s", row)


def circumstances(model: run_lib.Model) -> dict[str, Any]:
    facts = {"checkpoint": model.weights_hash[:12], "machine": rows.machine()}
    return facts | {"command": " ".join(sys.argv[1:])}


COLUMNS = {
    "calls": "calls",
    "what": "schedule",
    "seed": "seed",
    "distance": "distance",
    "share": "of the best unlearned",
    "block_frechet": "block Frechet",
    "radial_power_error": "spectrum error",
    "updates": "updates",
    "minutes": "minutes",
}


UNLEARNED = (("best unlearned", ""), ("GITS", "gits"), ("DMN", "dmn"))  # label, of one grid or of any


def table(folder: Path) -> str:
    """All rows, worst first; unlearned ones with the distance they were chosen by until they are measured in full."""
    found = {(row["what"], row["calls"], row["seed"]): row for row in rows.read_rows(folder / "rows.jsonl")}
    chosen_from = rows.read_rows(folder / "unlearned.jsonl")
    for calls in sorted({row["calls"] for row in chosen_from}):
        for label, grid in UNLEARNED:
            row = best(folder, calls, grid)
            if row is not None:
                what = f"{label}: {row['solver']}, {row['grid']}"
                found.setdefault((what, calls, 0), row | {"what": what})
    least = {row["calls"]: row["distance"] for row in found.values() if row["what"].startswith("best unlearned")}
    lines = []
    for row in sorted(found.values(), key=lambda row: (row["calls"], -row["distance"])):
        share = row["distance"] / least[row["calls"]] if row["calls"] in least else None
        lines.append({name: row.get(name) for name in COLUMNS} | {"share": share})
    return rows.markdown_table(lines, COLUMNS)


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    model = run_lib.load(_CONFIG.value)
    compiled: set = set()
    asked = [int(calls) for calls in _CALLS.value]

    def known() -> dict[tuple, dict[str, Any]]:
        return {(row["what"], row["calls"], row["seed"]): row for row in rows.read_rows(folder / "rows.jsonl")}

    def is_measured(key: tuple) -> bool:
        return known().get(key, {"n": 0})["n"] >= max(_N.value, _N_QUALITY.value)

    def refresh() -> None:
        if _PAGE.value:
            rows.replace_section(_PAGE.value, "ld3", table(folder))

    for calls in asked if _UNLEARNED.value else ():
        measure_unlearned(model, folder, calls, compiled)
    for calls in asked:
        for label, grid in UNLEARNED:
            row = best(folder, calls, grid)
            if row is None:
                continue
            what = f"{label}: {row['solver']}, {row['grid']}"
            edits = SOLVERS[row["solver"]] | {"sampling.num_steps": calls}
            edits |= {"sampling.grid": scales_of(model, folder, row["grid"], calls)}
            if not is_measured((what, calls, 0)):
                measure(model, folder, {"what": what, "calls": calls, "seed": 0, "minutes": 0}, edits, compiled)
            refresh()
    long = {"what": "long run: heun", "calls": 199, "seed": 0, "minutes": 0}
    if not is_measured((long["what"], 199, 0)):
        measure(model, folder, long, LONG, compiled)
        refresh()
    for run in LEARNED:
        key = (run.label, run.calls, run.seed)
        if run.calls not in asked or is_measured(key):
            continue
        path, minutes = learn(model, folder, run)
        minutes = known()[key]["minutes"] if key in known() else minutes  # of the run that learned it
        updates = 168 if run.preset == "paper" else learning_config(run).training.num_steps
        facts = {"what": run.label, "calls": run.calls, "seed": run.seed}
        facts |= {"updates": updates, "minutes": round(minutes, 1)}
        edits = {"sampling.method": run.what, "sampling.num_steps": run.calls}
        edits |= {"sampling.schedule": str(path.resolve())}
        measure(model, folder, facts, edits, {program(edits)})  # a schedule has no other steps to warm up with
        refresh()


if __name__ == "__main__":
    app.run(main)
