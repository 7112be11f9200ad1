"""Pages from sections: paragraphs, tables and drawings as one HTML file that needs nothing else, or as Markdown.

    page.html("Runs compared", [Section("Errors", [Table(head, lines), Text("Medians, in mm.")])])

A new part of a page is one more section; a new kind of part is a class with an `html` and a `markdown`.
"""

import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import ClassVar

from shapespace.evaluation.scores import markdown_table

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #2b2a28; --pale: #7a7670; --line: #dedad3; --warn: #f6e7c6 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1d1c1b; --ink: #e4e1dc; --pale: #a09b94; --line: #3d3a37; --warn: #4a3d1d }
}
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
h1, h2 { font-weight: 600; line-height: 1.25; overflow-wrap: anywhere }
p, ul { max-width: 46rem; overflow-wrap: anywhere } ul { padding-left: 1.2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0 }
th, td { padding: .25rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { font-weight: 500; color: var(--pale) }
.number { text-align: right }
.warning { background: var(--warn); padding: .6rem 1rem .6rem 2rem; border-radius: 4px; max-width: none }
figure { margin: .6rem 0 } figure svg { max-width: 100%; height: auto }
figcaption, .hint { color: var(--pale); max-width: 46rem }
.turnables { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
.turnable canvas, .turnable img { display: block; width: 100%; height: 22rem; object-fit: contain; border-radius: 4px }
.turnable canvas { cursor: grab; touch-action: pan-y }
.turnable canvas:focus-visible { outline: 2px solid var(--line) }
.turnable figcaption { font-size: .87rem; overflow-wrap: anywhere }
.play { display: flex; gap: .6rem; margin: .4rem 0 } .play input { flex: 1 }
.play button { font: inherit; min-width: 4.5rem }
.legend { display: flex; flex-wrap: wrap; justify-content: space-between; width: 18rem; margin: .6rem 0 }
.legend .ramp { width: 100%; height: .7rem; border-radius: 2px }
[hidden] { display: none !important }
""".strip()


class Part(ABC):
    """What a section is made of."""

    script: ClassVar[str] = ""
    """What makes it move; a page runs the script of a kind of part once, and no other."""

    @abstractmethod
    def html(self) -> str:
        """As elements of HTML."""

    @abstractmethod
    def markdown(self) -> str:
        """As a block of Markdown."""


@dataclass(frozen=True)
class Text(Part):
    """A paragraph."""

    words: str

    def html(self) -> str:
        """A paragraph."""
        return f"<p>{escape(self.words)}</p>"

    def markdown(self) -> str:
        """A paragraph."""
        return escape_markdown(self.words)


@dataclass(frozen=True)
class Notes(Part):
    """Sentences, one below the other; a warning stands out."""

    lines: Sequence[str]
    warning: bool = False

    def html(self) -> str:
        """A list."""
        kind = ' class="warning"' if self.warning else ""
        return f"<ul{kind}>" + "".join(f"<li>{escape(line)}</li>" for line in self.lines) + "</ul>"

    def markdown(self) -> str:
        """A list."""
        return "\n".join(f"- {'**Take care.** ' if self.warning else ''}{escape_markdown(line)}" for line in self.lines)


@dataclass(frozen=True)
class Table(Part):
    """Cells as they are shown: the first columns are words, to the left, the others numbers, to the right."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    words: int = 3

    def html(self) -> str:
        """A table; one that is wider than the page moves by itself."""
        head = "".join(self._cell("th", k, cell) for k, cell in enumerate(self.head))
        lines = ("".join(self._cell("td", k, cell) for k, cell in enumerate(line)) for line in self.lines)
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'

    def markdown(self) -> str:
        """A table whose source is aligned too."""
        return markdown_table(
            [[escape_markdown(cell) for cell in line] for line in (self.head, *self.lines)], self.words
        )

    def _cell(self, tag: str, column: int, cell: str) -> str:
        kind = ' class="number"' if column >= self.words else ""
        return f"<{tag}{kind}>{escape(cell)}</{tag}>"


@dataclass(frozen=True)
class Chart(Part):
    """A drawing: inline in HTML, a file beside the page in Markdown."""

    svg: str
    file: str
    caption: str

    def html(self) -> str:
        """The drawing and its caption."""
        return f"<figure>\n{self.svg}\n<figcaption>{escape(self.caption)}</figcaption>\n</figure>"

    def markdown(self) -> str:
        """A link to the file, and the caption."""
        return f"![{Path(self.file).stem}]({self.file})\n\n{escape_markdown(self.caption)}"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


def html(title: str, sections: Sequence[Section]) -> str:
    """One file, which asks for no other; light or dark as the reader's system is.

    The page forbids its reader's browser to load anything and to run any script but those of its parts, whose digests
    it names: what stands in a run's files may be rude, but it stays words.
    """
    scripts = list(dict.fromkeys(part.script for section in sections for part in section.parts if part.script))
    body = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        parts = "\n".join(part.html() for part in section.parts)
        body.append(f"<section>\n<h2>{escape(section.title)}</h2>\n{parts}\n</section>")
    body += [f"<script>{script}</script>" for script in scripts]
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{_allowed(scripts)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>"
    )
    joined = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{joined}\n</body>\n</html>\n'


def _allowed(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    run = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {run}"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The same for a terminal, a README or an issue."""
    blocks = [f"# {escape_markdown(title)}"]
    for section in sections:
        blocks += [f"## {escape_markdown(section.title)}", *(part.markdown() for part in section.parts)]
    return "\n\n".join(blocks) + "\n"


def escape_markdown(words: str) -> str:
    """Words that Markdown would take for HTML, as words."""
    return words.replace("<", "\\<")
