"""The package's rooms from the code: which import which, drawn, and a line for each file: ``python docs/_build/rooms.py``.

An arrow that follows from others is left out: where ``web`` uses ``words`` and ``words`` uses ``inference``, none leads
from ``web`` to ``inference``. What all rooms use is a bar at the bottom.
"""

import ast
import re
from html import escape
from itertools import pairwise
from pathlib import Path

import grimp

DOCS = Path(__file__).parents[1]
DRAWING = DOCS / "images" / "rooms.svg"
PAGE = DOCS / "rooms.md"
PACKAGE = DOCS.parent / "gitllm_plugin"

# Column and row of each room's middle, and what it is for. A new room has to be given its place here.
ROOMS = {
    "cli": (2.6, 0, "the gitllm command"),
    "experiments": (0.6, 1, "several runs, one page"),
    "host": (2.6, 1, "finds, repairs, starts LAVIS"),
    "lmms": (4.4, 1, "for lmms-eval"),
    "web": (5.6, 1, "the page to try a model"),
    "serving": (6.7, 2, "for OpenAI's clients"),
    "llama_cpp": (6.7, 3, "a model in llama.cpp"),
    "hf": (6.7, 1, "by transformers' names"),
    "runners": (0.6, 2, "training and evaluation"),
    "tasks": (1.8, 2, "what is scored, and how"),
    "datasets": (3.0, 2, "M3IT for LAVIS"),
    "models": (4.2, 2, "git_llm and git for LAVIS"),
    "words": (5.6, 2, "image vectors in words"),
    "inference": (5.6, 3, "a model as a person uses it"),
    "processors": (4.1, 3, "images and prompts"),
    "conform": (7.9, 2, "engines beside brute force"),
    "vllm": (7.9, 1, "a model in vLLM"),
    "curves": (0.0, 4, "losses, read and drawn"),
    "protocols": (1.2, 4, "what runners ask of others"),
    "metrics": (2.4, 4, "answers to scores"),
    "m3it": (3.6, 4, "rows, groups, shards"),
    "modeling": (5.0, 4, "the rule, decoder, model"),
}
# Arrows that would run behind a box: a point that they go through.
VIA = {
    ("cli", "conform"): (7.3, 1),
    ("host", "inference"): (4.9, 1.85),
    ("lmms", "inference"): (4.95, 2),
    ("models", "m3it"): (3.45, 3),
    ("models", "modeling"): (4.75, 3),
    ("runners", "modeling"): (3.1, 3.35),
}
EVERYWHERE = ("common", "config", "errors", "members", "resources", "secret_values", "tables")
KNOW_LAVIS = ("host", "runners", "tasks", "datasets", "models", "processors")

COLUMN, ROW, WIDTH, HEIGHT, MARGIN = 172, 112, 158, 52, 30
INK, LAVIS, OTHER, LINE = "#1c2733", "#dbe7ff", "#e6f4e6", "#7a8794"


def arrows() -> set[tuple[str, str]]:
    """Find which room imports which, without what follows from other arrows."""
    graph = grimp.build_graph("gitllm_plugin", cache_dir=None)
    uses: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module in graph.modules:
        room = _room(module)
        if room in ("", "__main__", *EVERYWHERE):
            continue
        if room not in ROOMS:
            raise SystemExit(f"{__file__} has no place for the room {room!r} of {module}")
        uses[room] |= {_room(other) for other in graph.find_modules_directly_imported_by(module)}
    # Registering imports by name what is listed in the package, which no import statement shows.
    from gitllm_plugin import REGISTERED_MODULES

    uses["host"] |= {_room(module) for module in REGISTERED_MODULES}
    uses = {room: (others & set(ROOMS)) - {room} for room, others in uses.items()}
    return {
        (room, other)
        for room, others in uses.items()
        for other in others
        if not any(other in _reached(uses, between) for between in others - {other})
    }


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _reached(uses: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [*uses[start]]
    while ahead:
        if (room := ahead.pop()) not in found:
            found.add(room)
            ahead += uses[room]
    return found


def drawing() -> str:
    """Draw the rooms as SVG; the same code gives the same bytes."""
    width = max(_middle(room)[0] for room in ROOMS) + WIDTH / 2 + 2 * MARGIN
    bottom = max(_middle(room)[1] for room in ROOMS) + HEIGHT
    height = bottom + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="sans-serif" text-anchor="middle">',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
        *(_arrow(*pair) for pair in sorted(arrows())),
        *(_box(*_middle(room), WIDTH, room, ROOMS[room][2], room in KNOW_LAVIS) for room in ROOMS),
        _box(width / 2, bottom + HEIGHT / 2, width - 2 * MARGIN, ", ".join(EVERYWHERE), "used by all rooms", False),
        f'<rect x="{MARGIN}" y="22" width="14" height="14" fill="{LAVIS}" stroke="{LINE}"/>',
        f'<text x="{MARGIN + 22}" y="34" font-size="13" fill="{INK}" text-anchor="start">imports LAVIS itself</text>',
        f'<rect x="{MARGIN}" y="44" width="14" height="14" fill="{OTHER}" stroke="{LINE}"/>',
        f'<text x="{MARGIN + 22}" y="56" font-size="13" fill="{INK}" text-anchor="start">does not</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _middle(room: str) -> tuple[float, float]:
    return _place(*ROOMS[room][:2])


def _place(column: float, row: float) -> tuple[float, float]:
    return MARGIN + WIDTH / 2 + column * COLUMN, MARGIN + HEIGHT / 2 + row * ROW


def _box(x: float, y: float, width: float, name: str, purpose: str, knows_lavis: bool) -> str:
    fill = LAVIS if knows_lavis else OTHER
    return (
        f'<rect x="{x - width / 2:g}" y="{y - HEIGHT / 2:g}" width="{width:g}" height="{HEIGHT}" rx="6" fill="{fill}" '
        f'stroke="{LINE}"/><text x="{x:g}" y="{y - 4:g}" font-size="15" font-weight="bold" fill="{INK}">{escape(name)}'
        f'</text><text x="{x:g}" y="{y + 14:g}" font-size="11" fill="{INK}">{escape(purpose)}</text>'
    )


def _arrow(start: str, end: str) -> str:
    (x0, y0), (x1, y1) = _middle(start), _middle(end)
    if y0 == y1:
        side = WIDTH / 2 if x1 > x0 else -WIDTH / 2
        return _line([(x0 + side, y0), (x1 - side, y1)])
    # Towards the other room, so that arrows of one box do not leave it at one point.
    lean = max(-0.4, min(0.4, (x1 - x0) / (4 * COLUMN))) * WIDTH
    between = [_place(*VIA[start, end])] if (start, end) in VIA else []
    return _line([(x0 + lean, y0 + HEIGHT / 2), *between, (x1 - lean, y1 - HEIGHT / 2)])


def _line(points: list[tuple[float, float]]) -> str:
    """Draw a curve that is upright at each of its points."""
    path = "M{:.1f} {:.1f}".format(*points[0])
    for (x0, y0), (x1, y1) in pairwise(points):
        bend = (y1 - y0) / 2
        path += f" C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'


def page() -> str:
    """Make the page of all files: of each the first words of its docstring."""
    lines = [
        "<!-- Made by docs/_build/rooms.py of the files' docstrings; edit those. -->\n",
        "# What each file owns\n",
        "Paths are below `gitllm_plugin/`; the rooms stand in the [picture of the architecture](architecture.md).",
    ]
    files = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py")]
    rooms = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    for room in ("", *rooms):
        of_room = [file for file in files if (file.parts[0] if len(file.parts) > 1 else "") == room]
        rows = [(file, _first_words(file)) for file in sorted(of_room, key=_order)]
        own = "What all rooms use" if not room else f"`{room}`"
        lines += [f"\n## {own}\n", "| file | owns |", "| --- | --- |"]
        lines += [f"| `{file}` | {words} |" for file, words in rows if words]
    return "\n".join(lines) + "\n"


def _order(file: Path) -> tuple[bool, str]:
    return file.name != "__init__.py", str(file)


def _first_words(file: Path) -> str:
    """Give the first sentence of a file's docstring, up to a colon or semicolon where that says enough."""
    text = ast.get_docstring(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))) or ""
    text = " ".join(text.partition("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
    text = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"`\1`", text)
    for end in (". ", ": ", "; "):
        head = text.partition(end)[0]
        text = head if len(head.split()) > 3 and head.count("`") % 2 == 0 else text
    return text.rstrip(".:;")


if __name__ == "__main__":
    DRAWING.write_text(drawing(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
