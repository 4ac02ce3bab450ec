"""Every solver on every grid at few network calls, on the demo checkpoint (docs/methods/solvers.md).

python -m benchmarks.unguided_table --workdir out/unguided_table [--calls 5,8,10,20] [--n 64] [--n_quality 1000]

The distance is the root mean square to the end of the same trajectory, drawn by Heun's method with 200 network calls
from the same noise: how well the ODE is solved. For the grid that does so best for its solver the last column is the
Frechet distance of 4x4-block means to the training photographs (not FID: no network judges), which is what one sees.
Stochastic solvers have no trajectory to be close to and appear with that alone. Images are kept in W: a run that is
stopped or repeated with a larger n draws only what is missing.
"""

import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging

import run_lib
from benchmarks.distances import distance, draw, edited
from builders.grids import create_grid
from metrics import reference
from reports import rows
from reports.atomic import write_text

_WORKDIR = flags.DEFINE_string("workdir", "out/unguided_table", "Rows and images go here.")
_CONFIG = flags.DEFINE_string("model_config", "configs/ve/demo.py", "The model.")
_REFERENCE = flags.DEFINE_string(
    "reference", "demo/flowers32_reference.npz", "From benchmarks/reference_statistics.py."
)
_CALLS = flags.DEFINE_list("calls", ["5", "8", "10", "20"], "Network calls an image.")
_N = flags.DEFINE_integer("n", 64, "Images a row of distances.")
_N_QUALITY = flags.DEFINE_integer(
    "n_quality", 0, "Images for Frechet and spectrum of each solver's best grid; 0: none."
)
_PAGE = flags.DEFINE_string("page", "", "Markdown page whose sections unguided and unguided_quality are rewritten.")

SOLVERS: dict[str, dict[str, Any]] = {  # row name -> changes to the config
    "ddim": {"sampling.method": "ddim"},
    "plms2": {"sampling.method": "plms2"},
    "plms4": {"sampling.method": "plms4"},
    "ipndm_v": {"sampling.method": "ipndm_v"},
    "deis": {"sampling.method": "deis"},
    "ghvb": {"sampling.method": "ghvb"},
    "dpmpp 2M": {"sampling.method": "dpmpp", "sampling.order": 2},
    "dpmpp 3M": {"sampling.method": "dpmpp"},
    "unipc": {"sampling.method": "unipc"},
    "heun": {"sampling.method": "heun"},
    "dpmpp_2s": {"sampling.method": "dpmpp_2s"},
}
STOCHASTIC = {"sa": {"sampling.method": "sa"}, "edm": {"sampling.method": "edm"}}
TWO_CALLS = ("heun", "dpmpp_2s", "edm")  # 2N - 1 calls in N steps: an odd number of calls
GRIDS = ("edm", "logsnr", "time_quadratic", "time_cubic", "edm_time", "ays", "dmn", "gits")
# On a VE model time is log s: time_uniform is logsnr.


def row_edits(edits: dict[str, Any], name: str, grid: str, calls: int) -> dict[str, Any]:
    steps = (calls + 1) // 2 if name in TWO_CALLS else calls
    return edits | {"sampling.num_steps": steps, "sampling.grid": grid}


def scales_of(model: run_lib.Model, folder: Path, grid: str, steps: int) -> str:
    """The noise scales that "gits" finds for this many steps, searched once and kept; other grids by their name."""
    if grid != "gits":
        return grid
    kept = folder / f"gits_{steps}.txt"
    if not kept.exists():
        searching = edited(model, {"sampling.grid": "gits", "sampling.num_steps": steps, "sampling.gits_images": 32})
        found = create_grid(searching, searching.config, model.denoiser)
        write_text(kept, ",".join(f"{value:#.9g}" for value in found.s))
    return kept.read_text()


def measure_distances(model: run_lib.Model, folder: Path, calls: int, compiled: set[frozenset]) -> None:
    edits = {"sampling.method": "heun", "sampling.num_steps": 100, "sampling.grid": "edm"}
    exact = draw(model, edits, _N.value, folder / "reference.npz", compiled).images
    known = {
        (row["solver"], row["grid"], row["calls_asked"], row["n"]) for row in rows.read_rows(folder / "rows.jsonl")
    }
    for grid in GRIDS:
        for name, edits in SOLVERS.items():
            if (name, grid, calls, _N.value) in known:
                continue
            steps = row_edits(edits, name, grid, calls)["sampling.num_steps"]
            chosen = row_edits(edits, name, scales_of(model, folder, grid, steps), calls)
            kept = folder / f"{name.replace(' ', '_')}_{grid}_{calls}.npz"
            drawn = draw(model, chosen, _N.value, kept, compiled)
            row = {"solver": name, "grid": grid, "calls_asked": calls, "calls": drawn.nfe}
            row |= distance(drawn.images, exact) | {"cpu_seconds": round(drawn.cpu_seconds, 1), "n": _N.value}
            rows.append_row(folder / "rows.jsonl", row | circumstances(model))
            logging.info("%s", row)


def measure_quality(model: run_lib.Model, folder: Path, calls: int, compiled: set[frozenset]) -> None:
    """Frechet and spectrum of each solver on its best grid, from `_N_QUALITY` images."""
    photographs = reference.load_reference(_REFERENCE.value)
    for name, edits in (SOLVERS | STOCHASTIC).items():
        grid = "edm" if name in STOCHASTIC else best_grid(folder, name, calls)
        steps = row_edits(edits, name, grid, calls)["sampling.num_steps"]
        chosen = row_edits(edits, name, scales_of(model, folder, grid, steps), calls)
        kept = folder / f"quality_{name.replace(' ', '_')}_{calls}.npz"
        drawn = draw(model, chosen, _N_QUALITY.value, kept, compiled)
        row = {"solver": name, "grid": grid, "calls_asked": calls, "calls": drawn.nfe}
        row |= reference.scores(run_lib.to_pixels(model, drawn.images), photographs)
        row |= {"cpu_seconds": round(drawn.cpu_seconds, 1)}
        rows.append_row(folder / "quality.jsonl", row | circumstances(model))
        logging.info("%s", row)


def best_grid(folder: Path, solver: str, calls: int) -> str:
    found = [row for row in newest(folder / "rows.jsonl") if (row["solver"], row["calls_asked"]) == (solver, calls)]
    return min(found, key=lambda row: row["distance"])["grid"]


def circumstances(model: run_lib.Model) -> dict[str, Any]:
    facts = {"seed": model.config.seed, "checkpoint": model.weights_hash[:12], "machine": rows.machine()}
    return facts | {"command": " ".join(sys.argv[1:])}


def newest(path: Path) -> list[dict[str, Any]]:
    """The newest row of each solver, grid and number of calls."""
    return list({(row["solver"], row["grid"], row["calls_asked"]): row for row in rows.read_rows(path)}.values())


def table(path: Path) -> str:
    """Solvers down, grids across, one block for each number of calls: mean distance times 1000."""
    blocks = []
    found = {(row["solver"], row["grid"], row["calls_asked"]): row for row in newest(path)}
    for calls in sorted({row["calls_asked"] for row in found.values()}):
        lines = []
        for solver in SOLVERS:
            line = {grid: found.get((solver, grid, calls)) for grid in GRIDS}
            if any(line.values()):
                cells = {grid: 1000 * row["distance"] if row else None for grid, row in line.items()}
                lines.append({"solver": solver} | cells)
        counts = sorted({row["n"] for row in found.values() if row["calls_asked"] == calls})
        heading = f"**{calls} calls** (n = {', '.join(map(str, counts))})\n\n"
        blocks.append(heading + rows.markdown_table(lines, {"solver": "solver"} | {grid: grid for grid in GRIDS}))
    return "\n".join(blocks)


QUALITY = {
    "solver": "solver",
    "grid": "grid",
    "calls": "calls",
    "block_frechet": "block Frechet",
    "radial_power_error": "spectrum error",
    "n": "n",
}


def main(argv: list[str]) -> None:
    del argv
    run_lib.configure_jax("float32")
    folder = Path(_WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    model = run_lib.load(_CONFIG.value)
    compiled: set = set()
    for calls in map(int, _CALLS.value):
        measure_distances(model, folder, calls, compiled)
        if _N_QUALITY.value:
            measure_quality(model, folder, calls, compiled)
        if _PAGE.value:
            rows.replace_section(_PAGE.value, "unguided", table(folder / "rows.jsonl"))
    if _PAGE.value and _N_QUALITY.value:
        found = sorted(newest(folder / "quality.jsonl"), key=lambda row: (row["calls_asked"], row["block_frechet"]))
        rows.replace_section(_PAGE.value, "unguided_quality", rows.markdown_table(found, QUALITY))


if __name__ == "__main__":
    app.run(main)
