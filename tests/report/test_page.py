"""Pages are self-contained, show their content, and escape it."""

import re
from html.parser import HTMLParser

from shapespace.rendering import plots
from shapespace.report import page
from shapespace.report.page import Chart, Notes, Section, Table, Text

VOID = {"meta", "br", "hr", "img", "link", "input"}
RUDE = "<b> & \"x\" 'y' </table><script>alert(1)</script>"


class Reader(HTMLParser):
    """Reads a page and refuses one whose elements do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[list[tuple[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name.endswith(("href", "src", "action", "data"))]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append((dict(attrs).get("class") or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name.endswith(("href", "src"))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            kind, words = self.cells[-1][-1]
            self.cells[-1][-1] = (kind, words + data)


def alone(text: str) -> Reader:
    """The page, read; it asks for no other file and runs nothing."""
    read = Reader(text)
    assert all(link.startswith("#") for link in read.links), read.links
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(read.tags)
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    return read


SECTIONS = [
    Section("First", [Text("One & two < three."), Notes(["a", "b"], warning=True)]),
    Section("Second", [Table(["run", "n", "x"], [["a|b", "1", "2.5"], [RUDE, "2", "-"]], text_columns=1)]),
    Section("Third", [Chart('<svg viewBox="0 0 1 1"><path d="M0 0"/></svg>', "curves.png", "A curve.")]),
]


def test_html_closes_what_it_opens_and_needs_no_other_file() -> None:
    read = alone(page.html("Runs: a, <b>", SECTIONS))
    assert read.tags.count("section") == 3
    assert read.tags.count("b") == 0
    assert [word for word in read.words if word.startswith("One")] == ["One & two < three."]


def test_a_drawing_of_curves_is_one_element_of_the_page() -> None:
    drawing = plots.svg(plots.error_curves({"test": {(RUDE, "lm"): [1.0, 2.0], ("b", "encode"): [None]}}))
    read = alone(page.html("t", [Section("Curves", [Chart(drawing, "curves.png", RUDE)])]))
    assert read.tags.count("svg") == 1
    assert read.tags.count("b") == 0
    assert read.words.count(RUDE) == 1  # the caption
    assert f"{RUDE}, lm" in [word.strip() for word in read.words]


def test_tables_come_back_as_they_were_with_numbers_to_the_right() -> None:
    read = alone(page.html("t", SECTIONS))
    assert [[words for _, words in line] for line in read.cells] == [
        ["run", "n", "x"],
        ["a|b", "1", "2.5"],
        [RUDE, "2", "-"],
    ]
    assert all([kind for kind, _ in line] == ["", "number", "number"] for line in read.cells)


def test_markdown_says_the_same_and_holds_no_html() -> None:
    text = page.markdown("Runs: a, <b>", SECTIONS)
    assert re.findall(r"^#+ .*", text, flags=re.MULTILINE) == ["# Runs: a, \\<b>", "## First", "## Second", "## Third"]
    assert not re.search(r"(?<!\\)<", text)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert set(lines[1].strip("|").split("|")[0].strip()) == {"-"}
    assert lines[1].rstrip("| ").endswith("-:")
    assert text.count("**Warning.**") == 2
    assert "![curves](curves.png)\n\nA curve." in text
