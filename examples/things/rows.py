"""Rules that make questions and answers of named pictures, and what is kept out of the training."""

from __future__ import annotations

import base64
import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from examples.things.pictures import KINDS, SIZE, Drawing

SEED = 42
NEW_STYLE = "emojione"
"""The style whose drawings are never trained on: new renderings of known things."""

NUM_NEW_THINGS = 100
NEW_THING_KINDS = ("animal or plant", "food or drink", "object", "place or vehicle", "game or sport")
NEW_COMBINATIONS = 0.15
"""The share of combinations of deed, gender and skin tone that are never trained on; each pair of the three is."""

NUM_RANKED_THINGS = 150  # each is read with a hundred names
MOST, NUM_COUNTED = 5, 2_000  # things to count, and pictures of several
WHAT, KIND, WHO, COUNT = "what is it?", "what kind of thing is it?", "who is it?", "how many are there?"
TESTS = ("thing", "known_thing", "new_thing", "kind", "yesno", "person", "count")
Row = dict[str, str]


@dataclass(frozen=True)
class Parts:
    """Drawings by what they are for.

    Attributes:
        train: trained on.
        new_renderings: in a style never trained on, of things that are in others.
        new_things: of things never trained on, in any style; names of :attr:`names`.
        new_people: combinations never trained on, in known styles.
    """

    train: list[Drawing]
    new_renderings: list[Drawing]
    new_things: list[Drawing]
    new_people: list[Drawing]

    @property
    def names(self) -> list[str]:
        """The names of new things, in the order of the alphabet."""
        return sorted({drawing.name for drawing in self.new_things})


def divide(emoji: Sequence[Drawing], others: Sequence[Drawing]) -> Parts:
    """Say what is trained on and what is kept out.

    Args:
        emoji: in several styles.
        others: drawings and stamps without a kind.
    """
    rng = random.Random(SEED)
    styles: dict[str, set[str]] = defaultdict(set)
    for drawing in emoji:
        styles[drawing.name].add(drawing.style)
    candidates = sorted(
        {d.name for d in emoji if d.kind in NEW_THING_KINDS and len(styles[d.name]) >= 4 and len(d.name.split()) == 1}
    )
    new_names = set(rng.sample(candidates, NUM_NEW_THINGS))
    new_people = _new_combinations(emoji, rng)

    def is_new(drawing: Drawing) -> bool:
        # A picture called "red apple" is an apple too.
        return bool(new_names & set(drawing.name.split()))

    known = [drawing for drawing in [*emoji, *others] if not is_new(drawing) and drawing.person not in new_people]
    train = [drawing for drawing in known if drawing.style != NEW_STYLE]
    trained = {drawing.name for drawing in train}
    return Parts(
        train=train,
        new_renderings=[d for d in known if d.style == NEW_STYLE and d.name in trained and d.person is None],
        new_things=[drawing for drawing in emoji if drawing.name in new_names],
        new_people=[d for d in emoji if d.person in new_people and d.style != NEW_STYLE],
    )


def _new_combinations(emoji: Sequence[Drawing], rng: random.Random) -> set[tuple[str, str, str]]:
    """Choose combinations, never one whose gender or tone would then be unknown for a deed."""
    combinations = sorted({drawing.person for drawing in emoji if drawing.person})
    left = set(combinations)
    for deed, gender, tone in rng.sample(combinations, len(combinations)):
        pairs = [
            sum(other[0] == deed and other[1] == gender for other in left),
            sum(other[0] == deed and other[2] == tone for other in left),
            sum(other[1:] == (gender, tone) for other in left),
        ]
        if min(pairs) > 1 and len(combinations) - len(left) < NEW_COMBINATIONS * len(combinations):
            left.remove((deed, gender, tone))
    return set(combinations) - left


class Writer:
    """Draws pictures, each once, and writes rows; what cannot be drawn is counted in :attr:`failed`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed = 0
        self._drawn: dict[Drawing, str | None] = {}

    def write(self, split: str, name: str, rows: Sequence[tuple[Drawing | Image.Image, Row]]) -> int:
        """Write ``SPLIT/NAME.jsonl``; gives the number of rows."""
        path = self.folder / split / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        count = 0
        with open(path, "w", encoding="utf-8") as file:
            for number, (drawing, row) in enumerate(tqdm(rows, f"{split}/{name}", disable=None)):
                picture = self._picture(drawing)
                if picture is not None:
                    whole = {"id": f"{split}-{name}-{number}", "config": name, "instruction": "", **row}
                    file.write(json.dumps({**whole, "image_base64_str": picture}) + "\n")
                    count += 1
        return count

    def _picture(self, drawing: Drawing | Image.Image) -> str | None:
        if isinstance(drawing, Image.Image):
            return encode(drawing)
        if drawing not in self._drawn:
            try:
                self._drawn[drawing] = encode(drawing.draw())
            except (ValueError, OSError):
                self.failed += 1
                self._drawn[drawing] = None
        return self._drawn[drawing]


def encode(image: Image.Image) -> str:
    """Give a picture as base64 of a PNG of 128 colours."""
    file = io.BytesIO()
    image.quantize(128).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def train_rows(parts: Parts) -> Iterator[tuple[str, list[tuple[Drawing | Image.Image, Row]]]]:
    """Give the rows of each kind of question to train on."""
    rng = random.Random(SEED)
    drawings = list(parts.train)
    rng.shuffle(drawings)
    things = [drawing for drawing in drawings if drawing.person is None]
    people = [drawing for drawing in drawings if drawing.person is not None]
    with_kind = [drawing for drawing in things if drawing.kind]
    yield "thing", [(drawing, row(WHAT, drawing.name)) for drawing in things]
    yield "kind", [(drawing, row(KIND, drawing.kind)) for drawing in with_kind if drawing.kind]
    yield "person", [(drawing, row(WHO, say_person(drawing))) for drawing in people]
    # Names are what takes long to learn: of pictures with yes/no questions a quarter.
    yield "yesno", yesno_rows(with_kind[::4], rng)
    yield "count", count_rows(with_kind, NUM_COUNTED, rng)


def test_rows(parts: Parts) -> Iterator[tuple[str, list[tuple[Drawing | Image.Image, Row]]]]:
    """Give the rows of each test of :data:`TESTS`."""
    rng = random.Random(SEED + 1)
    things = rng.sample(parts.new_renderings, min(500, len(parts.new_renderings)))
    yield "thing", [(drawing, row(WHAT, drawing.name)) for drawing in things]
    yield "known_thing", [(drawing, row(WHAT, drawing.name)) for drawing in things[:NUM_RANKED_THINGS]]
    # Two pictures of each.
    by_name: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in rng.sample(parts.new_things, len(parts.new_things)):
        by_name[drawing.name].append(drawing)
    yield "new_thing", [(d, row(WHAT, d.name)) for name in parts.names for d in by_name[name][:2]]
    yield "kind", [(d, row(KIND, d.kind)) for d in _equally(parts.new_renderings, 50, rng) if d.kind]
    yield "yesno", yesno_rows(things[:250], rng)
    people = rng.sample(parts.new_people, min(300, len(parts.new_people)))
    yield "person", [(drawing, row(WHO, say_person(drawing))) for drawing in people]
    yield "count", count_rows(parts.new_renderings, NUM_COUNTED // 10, rng)


def row(question: str, answer: str) -> Row:
    """Make a row without its picture."""
    return {"inputs": question, "outputs": answer}


def say_person(drawing: Drawing) -> str:
    """Give an emoji's person in words."""
    deed, gender, tone = drawing.person or ("", "", "")
    return f"{gender} {deed}, {tone} skin"


def yesno_rows(drawings: Sequence[Drawing], rng: random.Random) -> list[tuple[Drawing | Image.Image, Row]]:
    """Ask each picture for its own name, and for another's: each name is as often right as wrong.

    So a question's text tells nothing: the blind guess is one half.
    """
    others = _deranged([drawing.name for drawing in drawings], rng)
    rows: list[tuple[Drawing | Image.Image, Row]] = []
    for drawing, other in zip(drawings, others, strict=True):
        rows.append((drawing, row(f"is it {drawing.name}?", "yes")))
        rows.append((drawing, row(f"is it {other}?", "no")))
    return rows


def count_rows(drawings: Sequence[Drawing], number: int, rng: random.Random) -> list[tuple[Drawing | Image.Image, Row]]:
    """Put one to five of a thing on a page, each number equally often."""
    rows: list[tuple[Drawing | Image.Image, Row]] = []
    while len(rows) < number:
        count = 1 + len(rows) % MOST
        try:
            page = _several(rng.choice(drawings).draw(SIZE // 3), count, rng)
        except (ValueError, OSError):
            continue  # another is drawn in its place
        rows.append((page, row(COUNT, str(count))))
    return rows


def _several(thing: Image.Image, count: int, rng: random.Random) -> Image.Image:
    page = Image.new("RGB", (SIZE, SIZE), "white")
    step = SIZE // 3
    for place in rng.sample(range(9), count):
        page.paste(thing, (place % 3 * step, place // 3 * step))
    return page


def _deranged(names: Sequence[str], rng: random.Random) -> list[str]:
    """Shuffle names so that none stays with a picture of that name."""
    order = rng.sample(range(len(names)), len(names))
    shifted = {place: names[order[(number + 1) % len(order)]] for number, place in enumerate(order)}
    found = [shifted[place] for place in range(len(names))]
    for place in range(len(names)):
        while found[place] == names[place]:
            other = rng.randrange(len(names))
            if found[other] != names[place] and found[place] != names[other]:
                found[place], found[other] = found[other], found[place]
    return found


def _equally(drawings: Sequence[Drawing], number: int, rng: random.Random) -> list[Drawing]:
    """Draw as many of each kind."""
    by_kind: dict[str | None, list[Drawing]] = defaultdict(list)
    for drawing in rng.sample(list(drawings), len(drawings)):
        by_kind[drawing.kind].append(drawing)
    least = min([number, *(len(by_kind[kind]) for kind in KINDS.values() if by_kind[kind])])
    return [drawing for kind in KINDS.values() for drawing in by_kind[kind][:least]]
