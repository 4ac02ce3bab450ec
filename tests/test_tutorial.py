"""The tutorial's block of Python, run for real; its commands are run dry by test_docs_commands.py."""

import os
import re
import subprocess
import sys

import pytest
from test_docs_commands import DOCS, ROOT


@pytest.mark.slow
def test_the_block_of_python_draws():
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "(2, 32, 32, 3) 3"
