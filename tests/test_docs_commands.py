"""Every command on the pages of the front door is one that this program takes; every local link leads somewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(DOCS / f"{name}.md" for name in ("index", "tutorial", "faq", "metrics", "bring_your_own", "latent", "training")),
    *sorted((DOCS / "coming_from").glob("*.md")),
]
SYSTEMS = "pds score_sde edm guided_diffusion split_diffusion ld3 diffusers k_diffusion dsno diffusion_distiller"


def commands_of(page: str) -> list[str]:
    """Those in code blocks, in the text, and in the last cells of tables: what stands left is another program's."""
    found, rest = [], []
    for number, part in enumerate(re.split(r"^```.*$", page, flags=re.MULTILINE)):
        if number % 2:
            found += re.sub(r"\\\n\s*", "", part).splitlines()
        else:
            found += [line.strip() for line in part.splitlines() if line.startswith("    ")]
            rest += [
                line.rstrip(" |").rpartition(" | ")[2] if line.startswith("|") else line for line in part.splitlines()
            ]
    found += re.findall(r"`([^`]*)`", "\n".join(rest))
    return [line.partition("  #")[0].strip() for line in found if line.startswith("python main.py")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands name: configs, pictures, masks, a schedule."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "demo").symlink_to(ROOT / "demo")
    (folder / "photos").mkdir()
    grey = Pillow.fromarray(np.full((64, 64, 3), 90, np.uint8))
    for name in ("photo.png", "photos/a.png", "photos/b.png"):
        grey.save(folder / name)
    grey.resize((8, 8)).save(folder / "small.png")
    Pillow.fromarray(np.uint8(255) * np.tri(32, dtype=np.uint8)).save(folder / "mask.png")
    with zipfile.ZipFile(folder / "flowers.zip", "w") as file:
        file.write(folder / "photo.png", "photo.png")
    np.savez(folder / "64_samples.npz", np.zeros((2, 64, 64, 3), np.uint8))
    for name in ("f.npy", "s.npy"):
        np.save(folder / name, np.ones((3, 32, 32), np.float32))
    shutil.copy(ROOT / "configs" / "ve" / "cifar10_ncsnpp_continuous.py", folder / "theirs.py")
    own = (DOCS / "your_own_network.md").read_text()
    (folder / "my_net.py").write_text(re.search(r"```python\n(.*?)```", own, re.DOTALL)[1])
    (folder / "prompts.txt").write_text("a red rose\n\nein Hund\n")
    (folder / "captions.json").write_text('["a red rose"]')
    (folder / "photos512").mkdir()
    grey.resize((512, 512)).save(folder / "photos512" / "a.png")
    Pillow.fromarray(np.uint8(255) * np.tri(512, dtype=np.uint8)).save(folder / "mask512.png")
    Pillow.fromarray(np.uint8(255) * np.tri(64, dtype=np.uint8)).save(folder / "mask64.png")
    (folder / "SD" / "ld3").mkdir(parents=True)
    (folder / "SD" / "ld3" / "ld3_5.json").write_text("[14.6146, 5.0, 2.0, 0.7, 0.2, 0.0]")
    (folder / "W" / "ld3").mkdir(parents=True)
    (folder / "W" / "ld3" / "ld3_5.json").write_text("[50.0, 10.0, 3.0, 1.0, 0.2, 0.0]")
    return folder


def test_a_page_tells_users_of_each_published_program_what_to_type():
    assert {page.stem for page in (DOCS / "coming_from").glob("*.md")} == set(SYSTEMS.split())
    for page in (DOCS / "coming_from").glob("*.md"):
        assert len(commands_of(page.read_text())) >= 2, page


def test_every_command_of_the_pages_runs_dry(folder):
    asked = [(page.stem, line) for page in PAGES for line in commands_of(page.read_text())]
    assert len(asked) > 60
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "dry_runs.py")],
        input=json.dumps([line for _, line in asked]),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    wrong = [f"{page}: {line}\n    {answer}" for (page, line), answer in zip(asked, answers, strict=True) if answer]
    assert not wrong, "\n".join(wrong)
    assert not (folder / "W" / "eval").exists(), "a dry run writes nothing"
