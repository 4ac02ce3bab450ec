"""Students beside solvers at 1, 2, 4 and 8 network calls on the demo checkpoint, from equal noise.

python -m benchmarks.students_table --workdir out/students [--n 256] [--students FILE,FILE]
    [--page docs/methods/progressive_distillation.md]

Each row: distance to Heun at 99 calls from the same noise (root mean square, of black to white, over the first 64
images), Frechet distance of block means and spectrum error against the training photographs. Rows that W/rows.jsonl has
are not made again.
"""

import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging

import run_lib
from metrics import reference
from metrics.paired import rmse
from reports import rows
from reports.grids import comparison_grid
from reports.images import write_png

_WORKDIR = flags.DEFINE_string("workdir", "out/students", "Rows and pictures go here.")
_CONFIG = flags.DEFINE_string("model_config", "configs/ve/demo.py", "The teacher.")
_STUDENTS = flags.DEFINE_list(
    "students",
    ["demo/student_4.safetensors", "demo/consistency.safetensors", "demo/dsno.safetensors"],
    "Files of students.",
)
_REFERENCE = flags.DEFINE_string("reference", "demo/flowers32_reference.npz", "Statistics of the photographs.")
_N = flags.DEFINE_integer("n", 256, "Images a row; at least 193 for the covariance of 192 features.")
_PAGE = flags.DEFINE_string("page", "", "Markdown page whose section students_table is rewritten.")

LONG = {"method": "heun", "num_steps": 50}
PAIRED = 64
# Heun's last step to s = 0 is one call, so k steps are 2 k - 1.
SOLVERS = [{"method": "ddim", "num_steps": k} for k in (1, 2, 4, 8)]
SOLVERS += [{"method": "unipc", "num_steps": k, "order": min(k, 3)} for k in (2, 4, 8)]
SOLVERS += [{"method": "plms4", "num_steps": 8, "grid": "logsnr"}]  # the nearest of all unlearned ones
SOLVERS += [{"method": "heun", "num_steps": 4}, {"method": "heun", "num_steps": 8}]
COLUMNS = {
    "sampler": "sampler",
    "calls": "calls",
    "distance": "distance to the teacher",
    "block_frechet": "block Frechet",
    "radial_power_error": "spectrum error",
    "seconds": "seconds",
}


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    teacher = run_lib.load(_CONFIG.value)
    statistics = reference.load_reference(_REFERENCE.value)
    long = run_lib.to_pixels(teacher, run_lib.sample(teacher, LONG, range(PAIRED)).images)
    done = {row["sampler"]: row for row in rows.read_rows(folder / "rows.jsonl")}
    shown = [(long[:8], "teacher, heun", 99)]
    for name, model, sampling in _samplers(teacher):
        run_lib.sample(model, sampling, range(32))  # compiles
        start = time.perf_counter()
        count = 8 if name in done else _N.value
        drawn = run_lib.sample(model, sampling, range(count))
        seconds = time.perf_counter() - start
        images = run_lib.to_pixels(model, drawn.images)
        shown.append((images[:8], name, drawn.nfe))
        if name in done:
            continue
        row = dict(reference.scores(images, statistics)) | {
            "sampler": name,
            "calls": drawn.nfe,
            "distance": float(rmse(images[:PAIRED], long).mean()),
            "seconds": round(seconds, 1),
            "seed": 0,
            "checkpoint": model.weights_hash[:12],
            "machine": rows.machine(),
            "command": " ".join(sys.argv[1:]),
        }
        rows.append_row(folder / "rows.jsonl", row)
        logging.info("%s", row)
    shown[1:] = sorted(shown[1:], key=lambda row: (row[2], row[1]))
    pictures = {f"{name}, {calls} calls": np.asarray(images) for images, name, calls in shown}
    write_png(folder / "students.png", comparison_grid(pictures))
    found = sorted(rows.read_rows(folder / "rows.jsonl"), key=lambda row: (row["calls"], row["distance"]))
    table = rows.markdown_table(found, COLUMNS)
    print(table)
    if _PAGE.value:
        rows.replace_section(_PAGE.value, "students_table", table)


def _samplers(teacher: run_lib.Model) -> list[tuple[str, run_lib.Model, dict]]:
    """(name, model, changes to config.sampling): solvers, learned schedules that are shipped, students."""
    found = [(f"{s['method']}, {s['num_steps']} steps", teacher, s) for s in SOLVERS]
    for k in (2, 3, 4, 5, 8):
        found.append((f"ld3, {k} steps", teacher, {"method": "ld3", "num_steps": k}))  # schedules in demo/
    for file in map(Path, _STUDENTS.value):
        student = run_lib.load(checkpoint=str(file))
        most = student.config.student.num_steps
        calls = [most] if student.config.student.method == "distilled" else range(1, most + 1)
        work = f" (the work of {student.config.model.num_times})" if student.config.model.num_times > 1 else ""
        name = student.config.student.method
        found += [(f"{name}, {k} steps{work}", student, {"num_steps": k}) for k in calls]
    return found


if __name__ == "__main__":
    app.run(main)
