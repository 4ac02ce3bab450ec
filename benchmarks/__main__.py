"""All benchmarks by name, each in a process of its own.

    python -m benchmarks                        # what there is
    python -m benchmarks network_call --batch 1 # runs one; what follows the name is its own

Each program says in its docstring what it measures and how; the results are in docs/performance.md and docs/scaling.md.
"""

import ast
import difflib
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def programs() -> dict[str, str]:
    """Name and first line of every program of this folder, not of what programs share; nothing is imported."""
    texts = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.py")) if not path.name.startswith("_")}
    runnable = {name: text for name, text in texts.items() if '__name__ == "__main__"' in text}
    return {name: (ast.get_docstring(ast.parse(text)) or "").split("\n")[0] for name, text in runnable.items()}


def main(arguments: list[str]) -> int:
    """Lists the programs, or runs one and returns its exit code."""
    found = programs()
    if not arguments:
        width = max(map(len, found))
        print("\n".join(f"{name:{width}}  {line}" for name, line in found.items()))
        return 0
    name, *rest = arguments
    if name not in found:
        close = difflib.get_close_matches(name, found, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"There is no benchmark {name!r}; `python -m benchmarks` lists them.{hint}", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *rest], cwd=FOLDER.parent).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
