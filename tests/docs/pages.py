"""The documentation as data: pages, links, anchors and the snippets that are marked as runnable."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
MARK = "<!-- runnable -->"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUNNABLE = re.compile(rf"^{MARK}\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


# Pages and tables that are made of the code, or compared with it, row by row.
MADE_PAGES = ("docs/configuration.md", "docs/commands.md", "docs/rooms.md")
_MADE_TABLE = re.compile(r"<!-- (\w+): .*?-->.*?<!-- end of \1 -->", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A fenced block."""

    language: str
    code: str


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(REPOSITORY))


def runnable_snippets(page: Path) -> list[Snippet]:
    """The blocks of a page behind the line `<!-- runnable -->`, in order."""
    return [Snippet(*match) for match in _RUNNABLE.findall(page.read_text(encoding="utf-8"))]


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures, outside of fenced blocks."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [first or second for first, second in _LINK.findall(text)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in _HEADING.findall(text)}


def count_words(page: Path) -> int:
    """Count words that people wrote: no blocks of code, no tables that are made, no strokes of tables."""
    text = _FENCE.sub("", _MADE_TABLE.sub("", page.read_text(encoding="utf-8")))
    return sum(any(letter.isalnum() for letter in word) for word in text.split())
