"""Relative links and pictures of the documentation lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#]+)(#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path):
    missing = [
        target
        for target, _ in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not missing, f"{page.name} links to {', '.join(missing)}"


def test_links_are_found():
    assert LINK.findall("![a](b/c.svg) [d](e.md#f) [g](https://h)") == [
        ("b/c.svg", ""),
        ("e.md", "#f"),
    ]
