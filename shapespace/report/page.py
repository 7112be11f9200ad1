"""Pages of text, tables and charts, written as one self-contained HTML file or as Markdown.

    page.html("Runs compared", [Section("Errors", [Table(head, lines), Text("Medians (mm).")])])

A new kind of content is a subclass of `Part` with `html` and `markdown`.
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
.mesh-views { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
.mesh-view canvas, .mesh-view img { display: block; width: 100%; height: 22rem; object-fit: contain }
.mesh-view canvas, .mesh-view img { border-radius: 4px }
.mesh-view canvas { cursor: grab; touch-action: pan-y }
.mesh-view canvas:focus-visible { outline: 2px solid var(--line) }
.mesh-view figcaption { font-size: .87rem; overflow-wrap: anywhere }
.play { display: flex; gap: .6rem; margin: .4rem 0 } .play input { flex: 1 }
.play button { font: inherit; min-width: 4.5rem }
.legend { display: flex; flex-wrap: wrap; justify-content: space-between; width: 18rem; margin: .6rem 0 }
.legend .gradient { width: 100%; height: .7rem; border-radius: 2px }
[hidden] { display: none !important }
""".strip()


class Part(ABC):
    """Content of a section."""

    script: ClassVar[str] = ""
    """JavaScript of this kind of part. A page contains it once, and no other scripts."""

    @abstractmethod
    def html(self) -> str:
        """HTML elements."""

    @abstractmethod
    def markdown(self) -> str:
        """Markdown block."""


@dataclass(frozen=True)
class Text(Part):
    """Paragraph."""

    text: str

    def html(self) -> str:
        """Paragraph."""
        return f"<p>{escape(self.text)}</p>"

    def markdown(self) -> str:
        """Paragraph."""
        return escape_markdown(self.text)


@dataclass(frozen=True)
class Notes(Part):
    """Bullet list; a warning is highlighted."""

    lines: Sequence[str]
    warning: bool = False

    def html(self) -> str:
        """List."""
        kind = ' class="warning"' if self.warning else ""
        return f"<ul{kind}>" + "".join(f"<li>{escape(line)}</li>" for line in self.lines) + "</ul>"

    def markdown(self) -> str:
        """List."""
        return "\n".join(f"- {'**Warning.** ' if self.warning else ''}{escape_markdown(line)}" for line in self.lines)


@dataclass(frozen=True)
class Table(Part):
    """Table of formatted cells: text columns (left-aligned), then numbers (right-aligned)."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    text_columns: int = 3

    def html(self) -> str:
        """Table that scrolls sideways if it is wider than the page."""
        head = "".join(self._cell("th", k, cell) for k, cell in enumerate(self.head))
        lines = ("".join(self._cell("td", k, cell) for k, cell in enumerate(line)) for line in self.lines)
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'

    def markdown(self) -> str:
        """Table with aligned source."""
        return markdown_table(
            [[escape_markdown(cell) for cell in line] for line in (self.head, *self.lines)], self.text_columns
        )

    def _cell(self, tag: str, column: int, cell: str) -> str:
        kind = ' class="number"' if column >= self.text_columns else ""
        return f"<{tag}{kind}>{escape(cell)}</{tag}>"


@dataclass(frozen=True)
class Chart(Part):
    """SVG drawing: inline in HTML, a file beside the page in Markdown."""

    svg: str
    file: str
    caption: str

    def html(self) -> str:
        """Drawing and caption."""
        return f"<figure>\n{self.svg}\n<figcaption>{escape(self.caption)}</figcaption>\n</figure>"

    def markdown(self) -> str:
        """Link to the file, and caption."""
        return f"![{Path(self.file).stem}]({self.file})\n\n{escape_markdown(self.caption)}"


@dataclass(frozen=True)
class Section:
    """Heading and content."""

    title: str
    parts: Sequence[Part]


def html(title: str, sections: Sequence[Section]) -> str:
    """Self-contained HTML page in the color scheme of the reader's system.

    Names and captions come from files that may be untrusted. They are escaped, and the content security policy forbids
    all loading and all scripts but those of the parts, which are allowed by digest.
    """
    scripts = list(dict.fromkeys(part.script for section in sections for part in section.parts if part.script))
    body = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        parts = "\n".join(part.html() for part in section.parts)
        body.append(f"<section>\n<h2>{escape(section.title)}</h2>\n{parts}\n</section>")
    body += [f"<script>{script}</script>" for script in scripts]
    policy = _content_security_policy(scripts)
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>"
    )
    joined = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{joined}\n</body>\n</html>\n'


def _content_security_policy(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    run = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {run}"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Markdown page with the same content."""
    blocks = [f"# {escape_markdown(title)}"]
    for section in sections:
        blocks += [f"## {escape_markdown(section.title)}", *(part.markdown() for part in section.parts)]
    return "\n\n".join(blocks) + "\n"


def escape_markdown(text: str) -> str:
    """Escape `<`, which starts an HTML element in Markdown."""
    return text.replace("<", "\\<")
