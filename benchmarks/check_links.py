"""Links on the pages that lead to no file or heading:  python -m benchmarks.check_links  (part of ./run check).

Local links only: nothing is fetched.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def pages(root: Path) -> list[Path]:
    """The Markdown files at the root, and those of docs/ and demo/."""
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("demo/*.md")])


def anchors(page: str) -> set[str]:
    """The names under which headings can be linked to: lower case, spaces as hyphens, without punctuation."""
    headings = re.findall(r"^#+ +(.*?) *$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """ "docs/a.md: b.md is not there", one a link of `page` to a file or heading that does not exist."""
    text, broken = page.read_text(encoding="utf-8"), []
    for link in _LINK.findall(_CODE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, heading = unquote(link).partition("#")
        target = page.parent / file if file else page
        if not target.exists():
            broken.append(f"{page}: {link} is not there")
        elif heading and heading not in anchors(target.read_text(encoding="utf-8")):
            broken.append(f"{page}: {link} is no heading there")
    return broken


def main() -> None:
    broken = [line for page in pages(ROOT) for line in broken_links(page)]
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
