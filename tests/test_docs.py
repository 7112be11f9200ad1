"""The pages name what exists: links, pictures, files, modules; and the reference equals the code."""

import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
PAGES = [HOUSE / "README.md", HOUSE / "CONTRIBUTING.md", *sorted((HOUSE / "docs").rglob("*.md"))]
MADE = ("data/", "runs/", "tests/data/mine")  # what commands make
FOLDERS = "shapespace|tools|tests|datasets|configs|docs"
SUFFIXES = ".py|.md|.yaml|.toml|.png|.gif|.svg|.tsv|.npz|.safetensors|.js"


def anchors(text: str) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOUSE)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        place, _, fragment = target.partition("#")
        if place.startswith(("http://", "https://", "mailto:")):
            continue
        file = (page.parent / place) if place else page
        if not file.exists() or (fragment and fragment not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOUSE)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*(?:{SUFFIXES}|/))(?:::\w+)?`", page.read_text())
    missing = sorted({name for name in named if not name.startswith(MADE) and not (HOUSE / name).exists()})
    assert not missing


def test_no_picture_is_left_over() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = [path for path in (HOUSE / "docs" / "images").rglob("*") if path.is_file()]
    assert pictures
    assert not [str(path.relative_to(HOUSE)) for path in pictures if path.name not in text]


def test_the_readme_is_short() -> None:
    assert len((HOUSE / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_reference_is_made_from_the_code() -> None:
    from shapespace.tools._reference import pages

    for name, text in pages().items():
        assert (HOUSE / "docs" / "reference" / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"
