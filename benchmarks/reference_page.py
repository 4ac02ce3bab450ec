"""Writes docs/reference.md, every mode, flag, method and key, from the code:  python -m benchmarks.reference_page

Run it after adding any of them; a test holds the page to the code. Files are parsed, nothing is run.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from reports.atomic import write_text

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"

_INTRODUCTION = """# Reference

Made by `python -m benchmarks.reference_page` from the code; do not edit it.

`python main.py --mode=MODE --config FILE[:METHOD] --workdir W [flags] [--config.SECTION.KEY=VALUE]`. A flag and
the key it stands for are the same setting. `./run` lists its verbs: `sample`, `compare`, `doctor` and the others.
"""


def create_page(root: Path = ROOT) -> str:
    """The text of the page."""
    parts = [
        _INTRODUCTION,
        "## Modes\n",
        _table(("mode", "what it does"), modes(root)),
        "## Flags\n",
        _table(("flag", "default", "meaning", "key"), flags(root)),
        "## Methods\n",
        "Names for `--method`, or behind a config file: `--config FILE:METHOD`. "
        "What each one is: [solvers](methods/solvers.md).\n",
        ", ".join(f"`{name}`" for name in methods(root)) + "\n",
        "## Keys\n",
        "`--config.SECTION.KEY=VALUE`; defaults are those of `configs/base.py`, which the file of a model edits.\n",
    ]
    for section, about, rows in keys(root):
        title = f"### {section}\n" if section else "### At the top\n"
        parts += [title, *([f"{about}\n"] if about else []), _table(("key", "default", "meaning"), rows)]
    return "\n".join(parts)


def modes(root: Path) -> list[tuple[str, str]]:
    """Names of `run_lib.MODES` with the first line of the file behind each."""
    from run_lib import MODES

    found = []
    for name in MODES:
        about = ast.get_docstring(ast.parse((root / "modes" / f"{name}.py").read_text())) or ""
        line = " ".join(about.split("\n\n")[0].split())
        found.append((f"`{name}`", line.partition(": ")[2] if line.startswith("--mode") else line))
    return sorted(found)


def flags(root: Path) -> list[tuple[str, str, str, str]]:
    """(flag, default, help, key) of each `flags.DEFINE_...` of main.py."""
    short = ast.literal_eval(_assigned(root / "modes" / "request.py", "SHORT_FLAGS"))
    found = []
    for node in ast.walk(ast.parse((root / "main.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            name, default, *rest = node.args
            flag, about = ast.literal_eval(name), ast.literal_eval(rest[-1])
            shown = ast.literal_eval(default)
            key = f"`{short[flag]}`" if flag in short else ""
            found.append((f"`--{flag}`", "" if shown in (None, "", []) else f"`{shown}`", about, key))
    return sorted(found)


def methods(root: Path) -> list[str]:
    """Names of `configs.methods.METHODS`."""
    from configs.methods import METHODS

    return sorted(METHODS)


def keys(root: Path) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """(section, what it is, [(key, default, comment)]) of configs/base.py; a section is the name of its function."""
    source = (root / "configs" / "base.py").read_text()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    yield "", "", _rows(functions["get_config"], comments, source)
    for section, function in _sections(functions["get_config"], ""):
        about = (ast.get_docstring(functions[function]) or "").split("\n\n")[0]
        yield section, " ".join(about.split()), _rows(functions[function], comments, source)
        for inner, nested in _sections(functions[function], f"{section}."):
            said = " ".join((ast.get_docstring(functions[nested]) or "").split())
            yield inner, said, _rows(functions[nested], comments, source)


def _sections(function: ast.FunctionDef, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, name of the function that makes it) of the values that are sections."""
    for key, value in _items(function):
        if isinstance(value, ast.Call) and not value.args and isinstance(value.func, ast.Name):
            yield f"{prefix}{key}", value.func.id


def _rows(function: ast.FunctionDef, comments: dict[int, str], source: str) -> list[tuple[str, str, str]]:
    rows = []
    for key, value in _items(function):
        if isinstance(value, ast.Call) and not value.args:
            continue  # a section of its own
        shown = value.args[0] if isinstance(value, ast.Call) and _name(value.func) == "_number_or_word" else value
        default = " ".join((ast.get_source_segment(source, shown) or "").split())
        # Beside the value, or on the lines above it where that would be too long.
        lines = range(value.lineno, (value.end_lineno or value.lineno) + 1)
        beside = " ".join(comments[line] for line in lines if line in comments)
        rows.append((f"`{key}`", f"`{default}`", beside or comments.get(value.lineno - 1, "")))
    return rows


def _items(function: ast.FunctionDef) -> list[tuple[str, ast.expr]]:
    """The entries of the dict that the function returns."""
    table = next(node for node in ast.walk(function) if isinstance(node, ast.Dict))
    return [(ast.literal_eval(key), value) for key, value in zip(table.keys, table.values, strict=True) if key]


def _assigned(path: Path, name: str) -> ast.expr:
    """What a module assigns to `name`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and _name(node.targets[0]) == name:
            return node.value
    raise ValueError(f"{path} assigns nothing to {name}.")


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _table(headings: tuple[str, ...], rows: list) -> str:
    cells = [headings, ("---",) * len(headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells)


def main() -> None:
    write_text(PAGE, create_page())


if __name__ == "__main__":
    main()
