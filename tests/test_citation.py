"""CITATION.cff is YAML that citation tools accept, and names the five systems."""

from pathlib import Path

import yaml

FILE = Path(__file__).parent.parent / "CITATION.cff"


def test_the_citation_file_has_what_the_format_asks_for_and_the_five_papers():
    content = yaml.safe_load(FILE.read_text())
    assert content["cff-version"] == "1.2.0" and content["license"] == "Apache-2.0" and content["message"]
    titles = [paper["title"] for paper in content["references"]]
    for word in ("Preconditioned", "Splitting", "Discretize", "Progressive Distillation", "Operator Learning"):
        assert sum(word in title for title in titles) == 1
    for paper in content["references"]:
        assert paper["year"] >= 2022 and all(set(who) == {"family-names", "given-names"} for who in paper["authors"])
