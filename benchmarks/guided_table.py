"""Guided solvers on the demo checkpoint: how far from the exact guided flow, at what cost.

python -m benchmarks.guided_table --workdir out/guided_table [--tasks classifier,inpainting] [--n 64]

Each row draws n images from the noise of the reference: Strang splitting with Heun steps in both flows (the exact flow
for the inverse problems), --reference_steps of them, far beyond what DDIM with a thousand steps resolves. Inverse
problems repair, colour and enlarge images that the model itself drew, so no photograph is needed. Images are kept in W:
a run that is stopped or repeated with a larger n draws only what is missing.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image as Pillow

import run_lib
from benchmarks.distances import distance, draw
from reports import rows
from reports.grids import comparison_grid
from reports.images import write_png

_WORKDIR = flags.DEFINE_string("workdir", "out/guided_table", "Rows and images go here.")
_CONFIG = flags.DEFINE_string("model_config", "configs/ve/demo.py", "The model.")
_TASKS = flags.DEFINE_list("tasks", ["classifier", "inpainting"], "Rows of these tasks.")
_STEPS = flags.DEFINE_list("steps", ["5", "10", "20", "40"], "Steps.")
_N = flags.DEFINE_integer("n", 64, "Images a row.")
_REFERENCE_STEPS = flags.DEFINE_integer("reference_steps", 200, "Of the reference, two network calls each.")
_PAGE = flags.DEFINE_string("page", "", "Markdown page whose sections guided_<task> are rewritten.")

OFFICIAL, CORRECTED = {"guidance.compat": "official"}, {"guidance.compat": "corrected"}
EXACT = {"guidance.conditional": "flow"}
METHODS: dict[str, dict[str, Any]] = {  # row name -> changes to the config; "exact" rows need a linear observation
    "ddim": {"sampling.method": "ddim"},
    "plms2": {"sampling.method": "plms2"} | OFFICIAL,
    "plms4": {"sampling.method": "plms4"} | OFFICIAL,
    "ltsp2 official": {"sampling.method": "ltsp2"} | OFFICIAL,
    "ltsp2": {"sampling.method": "ltsp2"} | CORRECTED,
    "ltsp4 official": {"sampling.method": "ltsp4"} | OFFICIAL,
    "ltsp4": {"sampling.method": "ltsp4"} | CORRECTED,
    "stsp2 official": {"sampling.method": "stsp2"} | OFFICIAL,
    "stsp2": {"sampling.method": "stsp2"} | CORRECTED,
    "stsp4 official": {"sampling.method": "stsp4"} | OFFICIAL,
    "stsp4": {"sampling.method": "stsp4"} | CORRECTED,
    "stsp2 exact": {"sampling.method": "stsp2"} | CORRECTED | EXACT,
}
SAME_BELOW = {"ltsp4": (15, "ltsp2"), "stsp4": (15, "stsp2")}  # corrected order 4 is order 2 below 15 steps
COLUMNS = {
    "method": "method",
    "steps": "steps",
    "calls": "network calls",
    "gradient_calls": "gradient calls",
    "distance": "distance",
    "interval": "+-",
    "largest": "largest pixel",
    "cpu_seconds": "CPU s",
    "n": "n",
}


def task_edits(task: str, model: run_lib.Model, folder: Path, count: int, compiled: set) -> dict[str, Any]:
    """The config of a task; for an inverse problem its observations are drawn first and written as PNG."""
    if task == "classifier":
        return {"guidance.kind": "classifier", "guidance.scale": 3.0}
    observed = folder / f"{task}_given"
    observed.mkdir(exist_ok=True)
    plain = draw(
        model, {"sampling.method": "dpmpp", "sampling.num_steps": 20}, count, folder / "observed.npz", compiled
    )
    pixels = run_lib.to_pixels(model, plain.images)
    for index, image in enumerate(pixels):
        if task == "super_resolution":
            h, w, c = image.shape
            image = np.rint(image.reshape(h // 4, 4, w // 4, 4, c).mean((1, 3))).astype(np.uint8)
        Pillow.fromarray(image).save(observed / f"{index:04}.png")
    edits = {"guidance.kind": task, "guidance.likelihood": "direct", "guidance.image": str(observed)}
    if task == "inpainting":
        mask = np.full(model.shape[:2], 255, np.uint8)
        h, w = mask.shape
        mask[h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = 0
        Pillow.fromarray(mask).save(folder / "mask.png")
        edits["guidance.mask"] = str(folder / "mask.png")
    return edits


def reference_edits(task: str, steps: int) -> dict[str, Any]:
    conditional = "heun" if task == "classifier" else "flow"
    edits = {"sampling.method": "stsp2", "guidance.solver": "heun", "guidance.conditional": conditional}
    return edits | {"sampling.num_steps": steps}


def run_task(model: run_lib.Model, task: str, folder: Path) -> None:
    count = _N.value
    compiled: set[frozenset] = set()
    common = task_edits(task, model, folder, count, compiled)
    machine = rows.machine()
    many = _REFERENCE_STEPS.value
    kept = folder / f"{task}_reference_{many}.npz"
    reference = draw(model, common | reference_edits(task, many), count, kept, compiled)
    pictures = {"reference": run_lib.to_pixels(model, reference.images[:8])}

    def measure(name: str, steps: int, edits: dict[str, Any]) -> None:
        kept = folder / f"{task}_{name.replace(' ', '_')}_{steps}.npz"
        drawn = draw(model, common | edits | {"sampling.num_steps": steps}, count, kept, compiled)
        row: dict[str, Any] = {"task": task, "method": name, "steps": steps, "calls": drawn.nfe}
        row |= {"gradient_calls": drawn.gradient_calls} | distance(drawn.images, reference.images)
        row |= {"seconds": round(drawn.seconds, 1), "cpu_seconds": round(drawn.cpu_seconds, 1), "n": count}
        row |= {"reference_steps": many, "seed": model.config.seed, "checkpoint": model.weights_hash[:12]}
        row |= {"command": " ".join(sys.argv[1:]), "machine": machine}
        rows.append_row(folder / "rows.jsonl", row)
        logging.info("%s", row)
        if steps == 10:
            shown = np.nan_to_num(drawn.images[:8], nan=0.5)
            pictures[f"{name}, {drawn.nfe} + {drawn.gradient_calls} calls"] = run_lib.to_pixels(model, shown)

    for steps in map(int, _STEPS.value):
        for name, edits in METHODS.items():
            exact = edits.get("guidance.conditional") == "flow"
            if exact and task == "classifier" or name in SAME_BELOW and steps < SAME_BELOW[name][0]:
                continue
            measure(name, steps, edits)
    # What the reference itself lacks, as it would appear in the table.
    measure("reference, half the steps", many // 2, reference_edits(task, many // 2))
    write_png(folder / f"{task}.png", comparison_grid(pictures, caption=f"{task}, 10 steps, equal noise"))


def table(path: Path, task: str) -> list[rows.Row]:
    """The newest row of each method and number of steps."""
    newest = {(row["method"], row["steps"]): row for row in rows.read_rows(path) if row["task"] == task}
    order = [*METHODS, "reference, half the steps"]
    return sorted(newest.values(), key=lambda row: (row["steps"], order.index(row["method"])))


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    model = run_lib.load(_CONFIG.value)
    for task in _TASKS.value:
        run_task(model, task, folder)
        if _PAGE.value:
            text = rows.markdown_table(table(folder / "rows.jsonl", task), COLUMNS)
            rows.replace_section(_PAGE.value, f"guided_{task}", text)


if __name__ == "__main__":
    app.run(main)
