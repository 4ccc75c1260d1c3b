"""What the pages link to and tell to type exists."""

from __future__ import annotations

import re
from pathlib import Path

from import_cases import ROOT

from wn import experiments

PAGES = [p for folder in (".", "docs", "results", "results/claims") for p in (ROOT / folder).glob("*.md")]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        for path, _, anchor in (link.partition("#") for link in links if ":" not in link):
            target = page.parent / path if path else page
            assert target.exists(), (page, path)
            assert not anchor or anchor in anchors(target), (page, path, anchor)


def test_experiments_that_pages_name_exist():
    named = {name for page in PAGES for name in re.findall(r"\+experiment=(\w+)", page.read_text("utf-8"))}
    assert len(named) > 5
    assert named <= {*experiments.names(), "NAME"}
