"""Relative links and pictures of the documentation lead somewhere, and so do the headings they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page: Path):
    missing = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        found = page.parent / target if target else page
        if not found.exists() or (anchor and anchor[1:] not in anchors(found)):
            missing.append(target + anchor)
    assert not missing, f"{page.name} links to {', '.join(missing)}"


def test_every_page_of_measurements_is_in_its_index():
    folder = ROOT / "docs" / "measurements"
    listed = {target for target, _ in LINK.findall((folder / "README.md").read_text())}
    assert listed == {page.name for page in folder.glob("*.md")} - {"README.md"}


def test_links_are_found():
    assert LINK.findall("![a](b/c.svg) [d](e.md#f) [g](https://h) [i](#j)") == [
        ("b/c.svg", ""),
        ("e.md", "#f"),
        ("", "#j"),
    ]


def test_anchors_are_github_s():
    page = ROOT / "docs" / "training.md"
    assert {"vllm-kangaroo-train-adapter", "what-the-text-teaches"} <= anchors(page)
