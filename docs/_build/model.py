"""Draw the model and who sees whom in it, as GIT's rule says: ``python docs/_build/model.py``."""

from pathlib import Path

DRAWING = Path(__file__).parents[1] / "images" / "model.svg"
INK, LINE, IMAGE, TEXT, ANSWER, FROZEN, TRAINED = (
    "#1c2733", "#7a8794", "#bcd3ff", "#dff0df", "#ffe3b3", "#eef1f4", "#ffd0c2",
)  # fmt: skip
PATCHES = 4
WORDS = ("what", "color", "?", "teal", "end")  # the last two are the answer, on which the loss is
CELL = 44
LEFT, ROW = 40, 300


def drawing() -> str:
    """Give the SVG; the same code gives the same bytes."""
    slots = [f"v{number}" for number in range(1, PATCHES + 1)] + list(WORDS)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1010 500" width="1010" height="500" '
        'font-family="sans-serif" text-anchor="middle">',
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>',
        '<rect width="1010" height="500" fill="#ffffff"/>',
        *_picture(),
        _box(LEFT, 388, PATCHES * CELL, 40, FROZEN, "image encoder (frozen)"),
        _box(LEFT, 338, PATCHES * CELL, 34, TRAINED, "one projection (trained)"),
        _arrow(LEFT + PATCHES * CELL / 2, 440, 430),
        _arrow(LEFT + PATCHES * CELL / 2, 388, 374),
        *(_slot(number, slot) for number, slot in enumerate(slots)),
        _label(LEFT + PATCHES * CELL / 2, 288, "prefix"),
        _label(LEFT + (PATCHES + 1.5) * CELL, 288, "prompt"),
        _label(LEFT + (PATCHES + 4) * CELL, 288, "answer"),
        *(_arrow(LEFT + (number + 0.5) * CELL, 276, 236) for number in range(len(slots))),
        _box(LEFT, 150, len(slots) * CELL, 84, FROZEN, "language model (frozen)"),
        _box(LEFT + 20, 196, len(slots) * CELL - 40, 28, TRAINED, "LoRA (trained)"),
        # Each answer token is predicted one place before it.
        *(_arrow(LEFT + (PATCHES + 2.5 + number) * CELL, 150, 122) for number in range(2)),
        *(
            _box(LEFT + (PATCHES + 2 + number) * CELL, 90, CELL, 30, ANSWER, word)
            for number, word in enumerate(WORDS[3:])
        ),
        _label(LEFT + (PATCHES + 3) * CELL, 78, "loss on the answer's tokens alone"),
        *_rule(slots),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _picture() -> list[str]:
    """Draw a picture of four patches."""
    x, y, side = LEFT + PATCHES * CELL / 2 - 24, 442, 24
    places = [(x + column * side, y + row * side) for row in range(2) for column in range(2)]
    patches = [
        f'<rect x="{px:g}" y="{py:g}" width="{side}" height="{side}" fill="{IMAGE}" stroke="{LINE}"/>' for px, py in places
    ]
    shape = f'<rect x="{x + 12:g}" y="{y + 14:g}" width="24" height="20" fill="#008080"/>'
    return [*patches, shape]


def _rule(slots: list[str]) -> list[str]:
    """Draw which slot's query (row) sees which slot's key (column)."""
    left, top, side = 590, 110, 38
    drawn = [
        _label(left + len(slots) * side / 2, 60, "who sees whom: GIT's rule"),
        f'<text x="{left - 10}" y="{top - 12}" font-size="12" fill="{INK}" text-anchor="end">sees</text>',
    ]
    for row, query in enumerate(slots):
        y = top + row * side
        drawn.append(f'<text x="{left - 10}" y="{y + 24}" font-size="13" fill="{INK}" text-anchor="end">{query}</text>')
        drawn.append(f'<text x="{left + (row + 0.5) * side:g}" y="{top - 12}" font-size="13" fill="{INK}">{query}</text>')
        for column in range(len(slots)):
            sees = column < PATCHES or column <= row
            fill = _color(column) if sees else "#ffffff"
            drawn.append(
                f'<rect x="{left + column * side}" y="{y}" width="{side}" height="{side}" fill="{fill}" stroke="{LINE}"/>'
            )
    below = top + len(slots) * side + 24
    drawn.append(_label(left + len(slots) * side / 2, below, "an image sees all of itself and no text; text what is before it"))
    return drawn


def _color(slot: int) -> str:
    return IMAGE if slot < PATCHES else TEXT if slot < PATCHES + 3 else ANSWER


def _slot(number: int, word: str) -> str:
    return _box(LEFT + number * CELL, ROW, CELL, 34, _color(number), word)


def _box(x: float, y: float, width: float, height: float, fill: str, word: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" stroke="{LINE}"/>'
        f'<text x="{x + width / 2:g}" y="{y + (18 if height > 60 else height / 2) + 5:g}" font-size="14" fill="{INK}">{word}</text>'
    )


def _label(x: float, y: float, words: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="13" fill="{INK}">{words}</text>'


def _arrow(x: float, start: float, end: float) -> str:
    return f'<path d="M{x:g} {start:g} V{end:g}" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    DRAWING.write_text(drawing(), encoding="utf-8")
