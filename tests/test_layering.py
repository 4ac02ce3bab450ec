"""Imports point down, and optional packages stay optional: the layers of the table below, read from the source.

Nothing is imported here; every file is parsed.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = {
    "main": 8,
    "benchmarks": 8,
    "run_lib": 7,
    "modes": 6,
    "builders": 5,
    "training": 4,
    "reports": 3,
    "metrics": 3,
    "sampling": 2,
    "models": 2,
    "masks": 2,
    "sde_lib": 1,
    "precond": 1,
    "data": 1,
    "checkpoints": 1,
    "array_types": 0,
    "configs": 0,
}
SIDEWAYS = {("reports", "metrics")}

# Imported inside the function that needs them: large, or absent on some platforms.
HEAVY = {"matplotlib", "tensorflow_datasets", "grain", "orbax", "tensorstore", "tensorboardX", "lmdb"}
# Never imported by the toolkit itself: it reads their files without them.
FOREIGN = {"torch", "torchvision", "diffusers", "tensorflow"}
# Where an import name is not the name of the distribution.
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "tensorflow_datasets": "tensorflow-datasets"}


class Import(NamedTuple):
    file: str  # relative to the root
    line: int
    module: str  # dotted name as written; "flax.serialization" for `from flax import serialization`
    top_level: bool  # runs when the file is imported

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def folder(self) -> str:
        return self.file.split("/")[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(source: str, file: str) -> list[Import]:
    """Every import of a file; those in functions and under `if TYPE_CHECKING` do not run when it is imported."""
    found = []

    def visit(node: ast.AST, top_level: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, top_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            # The imported name may be a module: `from sampling import multistep`.
            found.extend(Import(file, node.lineno, f"{prefix}.{alias.name}", top_level) for alias in node.names)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            visit(child, top_level and not is_function and not is_typing)

    visit(ast.parse(source, filename=file), True)
    return found


def source_files() -> Iterator[Path]:
    """The toolkit's Python files: those at the root and in the folders that hold any, tests apart."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if not any(part.startswith(".") for part in parts) and parts[0] not in ("tests", "out", "runs"):
            yield path


def violations(imports: list[Import]) -> list[str]:
    return [f"{found}: {reason}" for found in imports for reason in broken_rules(found)]


def broken_rules(found: Import) -> Iterator[str]:
    here, there = found.folder, found.package
    layer = LAYERS[here]
    if found.module.startswith("."):
        yield "write the import from the root of the repository"
        return
    if there in LAYERS and there != here and LAYERS[there] >= layer and (here, there) not in SIDEWAYS:
        yield f"layer {layer} must not know layer {LAYERS[there]}"
    if there in ("configs", "ml_collections") and 0 < layer < LAYERS["builders"]:
        yield "nobody below builders sees a config"
    if there == "flax" and here != "models":
        if not (here in ("checkpoints", "training") and found.module.startswith("flax.serialization")):
            yield "flax belongs to models/ (flax.serialization also to checkpoints/ and training/)"
    if here != "benchmarks":
        if there in HEAVY and found.top_level:
            yield "import it inside the function that needs it"
        if there in FOREIGN:
            yield "the toolkit runs without it; comparisons live in benchmarks/ and tests/"


ALL_IMPORTS = [
    found
    for path in source_files()
    for found in imports_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
]


def test_every_file_has_a_layer():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in source_files()} <= set(LAYERS)


def test_imports_point_down_and_optional_packages_stay_optional():
    assert not violations(ALL_IMPORTS)


def test_every_import_is_the_standard_library_ours_or_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[><=~ ]", line)[0].replace("-", "_").lower() for line in requirements}

    always = names(project["dependencies"])
    sometimes = always.union(*(names(lines) for lines in project["optional-dependencies"].values()))
    undeclared = []
    for found in ALL_IMPORTS:
        name = DISTRIBUTIONS.get(found.package, found.package).replace("-", "_").lower()
        allowed = always if found.top_level and found.folder != "benchmarks" else sometimes
        if name not in allowed and found.package not in LAYERS and found.package not in sys.stdlib_module_names:
            undeclared.append(str(found))
    assert not undeclared, "not in pyproject.toml: " + "; ".join(undeclared)


def test_nothing_is_called_utils():
    assert not [path for path in source_files() if path.stem in ("utils", "util", "helpers", "common", "misc")]


# The guard itself: a rule that cannot fail guards nothing.


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("sampling/base.py", "import run_lib", "layer 2 must not know layer 7"),
        ("sampling/base.py", "from models import ncsnpp", "layer 2 must not know layer 2"),
        ("sampling/base.py", "def f():\n    from models import ncsnpp", "layer 2 must not know layer 2"),
        ("precond/base.py", "import sde_lib", "layer 1 must not know layer 1"),
        ("metrics/frechet.py", "import reports", "layer 3 must not know layer 3"),
        ("training/loop.py", "from configs import base", "nobody below builders sees a config"),
        ("sampling/base.py", "from ml_collections import ConfigDict", "nobody below builders sees a config"),
        ("run_lib.py", "import flax", "flax belongs to models"),
        ("training/state.py", "from flax import linen", "flax belongs to models"),
        ("masks/io.py", "from flax import serialization", "flax belongs to models"),
        ("reports/plots.py", "import matplotlib.pyplot as plt", "inside the function"),
        ("data/tfds.py", "class A:\n    import tensorflow_datasets as tfds", "inside the function"),
        ("checkpoints/torch.py", "def f():\n    import torch", "runs without it"),
        ("models/edm.py", "from diffusers import UNet2DModel", "runs without it"),
        ("sampling/base.py", "from . import multistep", "from the root"),
        ("sampling/base.py", "from .multistep import table", "from the root"),
    ],
)
def test_the_guard_sees(file, source, reason):
    (found,) = violations(imports_of(source, file))
    assert reason in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("reports/html.py", "import metrics.frechet"),
        ("sampling/base.py", "from sampling import multistep"),
        ("training/state.py", "import flax.serialization"),
        ("checkpoints/msgpack.py", "from flax import serialization"),
        ("reports/plots.py", "def f():\n    import matplotlib.pyplot as plt"),
        ("run_lib.py", "from configs import score_sde\nfrom ml_collections import ConfigDict"),
        ("configs/base.py", "from ml_collections import ConfigDict"),
        ("benchmarks/torch_unet.py", "import torch"),
        ("sampling/base.py", "import typing\nif typing.TYPE_CHECKING:\n    import matplotlib"),
    ],
)
def test_the_guard_lets_pass(file, source):
    assert not violations(imports_of(source, file))
