"""Pictures with names out of the packages: emoji in several styles, drawings, stamps."""

from __future__ import annotations

import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from examples.things.sources import CLIPART, EMOJI, STAMPS

SIZE = 128
"""Pixels of a picture's side."""

KINDS = {
    "Animals & Nature": "animal or plant",
    "Food & Drink": "food or drink",
    "Objects": "object",
    "Travel & Places": "place or vehicle",
    "Activities": "game or sport",
    "People & Body": "person",
    "Smileys & Emotion": "face or feeling",
    "Symbols": "sign",
}
"""Unicode's groups of emoji, in a word or two; flags are left out, which differ by name alone."""

PERSON = KINDS["People & Body"]

_PERSON = re.compile(r"(man|woman)-([a-z-]+?)-(medium-light|medium-dark|light|medium|dark)(?:-skin-tone)?")
_NO_DEED = re.compile(r"and-|medium|dark$|light$|.*-facing-right")  # two people; a tone of two; a mirrored drawing
_TONE = re.compile(r".*-(light|medium|dark)(-skin-tone.*)?")
_TITLE = re.compile(r"[A-Za-z][A-Za-z' ]{2,25}")
_NO_NAMES = re.compile(r"icon|logo|theme|flag|sign|symbol|clip ?art|gramastar|^card$|button|map\b", re.IGNORECASE)
_CLIPART_FOLDERS = (
    "animals",
    "buildings",
    "computer/hardware",
    "containers",
    "education",
    "electronics",
    "food",
    "geography/landscapes",
    "office",
    "people",
    "plants",
    "recreation",
    "science",
    "tools",
    "transportation",
)
_LONGEST_FILE = 300_000  # larger drawings take seconds each


@dataclass(frozen=True)
class Drawing:
    """A picture that is not yet drawn.

    Attributes:
        name: of what it shows, in small letters.
        style: whose drawing it is.
        kind: of :data:`KINDS`' values; None: not known.
        svg: its text; None: ``file`` is a picture.
        file: a picture.
        person: profession or deed, gender and skin tone of an emoji of a person.
    """

    name: str
    style: str
    kind: str | None = None
    svg: str | None = field(default=None, repr=False)
    file: Path | None = None
    person: tuple[str, str, str] | None = None

    def draw(self, size: int = SIZE) -> Image.Image:
        """Draw it on white, RGB, ``size`` pixels wide and high.

        Raises:
            ValueError: it is no drawing that can be drawn.
        """
        import resvg_py

        if self.file is not None:
            image = Image.open(self.file).convert("RGBA")
        else:
            image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=self.svg, width=2 * size, dpi=96))))
            image = image.convert("RGBA")
        image = image.crop(image.getbbox())  # many stand in a corner of an empty page
        if image.width < 8 or image.height < 8:
            raise ValueError(f"the drawing of {self.name} is empty")
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        page = Image.new("RGBA", (size, size), "white")
        page.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
        return page.convert("RGB")


@dataclass(frozen=True)
class IconSet:
    """A style of emoji, as Iconify packs it.

    Attributes:
        folder: the unpacked package.
        style: its name.
    """

    folder: Path
    style: str

    @cached_property
    def _icons(self) -> Mapping[str, Any]:
        return json.loads((self.folder / "package" / "icons.json").read_text(encoding="utf-8"))

    def kinds(self) -> dict[str, str | None]:
        """Give the kind of each name; None: of none that is taken."""
        groups = json.loads((self.folder / "package" / "metadata.json").read_text(encoding="utf-8"))["categories"]
        return {name: KINDS.get(_group(group)) for group, names in groups.items() for name in names}

    def drawings(self, kind_of: Mapping[str, str | None]) -> Iterator[Drawing]:
        """Give its icons of known kinds, each under its first name; of skin tones, those of people who do something."""
        for name, icon in self._icons["icons"].items():
            kind = kind_of.get(name)
            if kind is None or icon.get("hidden"):
                continue
            person = read_person(name) if kind == PERSON else None
            if person is None and kind == PERSON and _TONE.fullmatch(name):
                continue
            yield Drawing(
                name=" ".join(person) if person else name.replace("-", " "),
                style=self.style,
                kind=kind,
                svg=self._svg(icon),
                person=person,
            )

    def _svg(self, icon: Mapping[str, Any]) -> str:
        width, height = (icon.get(side, self._icons.get(side, 16)) for side in ("width", "height"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        box = f"{left} {top} {width} {height}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def read_emoji(cache: Path) -> list[Drawing]:
    """Give the emoji of all styles that were fetched, of names that at least two styles have."""
    folders = [cache / source.folder for source in EMOJI]
    sets = [IconSet(folder, folder.name) for folder in folders if folder.is_dir()]
    # Older sets have names that their own groups lack.
    kind_of = {name: kind for icons in reversed(sets) for name, kind in icons.kinds().items()}
    drawings = [drawing for icons in sets for drawing in icons.drawings(kind_of)]
    # Mozilla's names are those of the others without a space between the words.
    joined = {drawing.name.replace(" ", ""): drawing.name for drawing in drawings if " " in drawing.name}
    named = [replace(drawing, name=joined.get(drawing.name, drawing.name)) for drawing in drawings]
    styles = Counter(name for name, _ in {(drawing.name, drawing.style) for drawing in named})
    return [drawing for drawing in named if styles[drawing.name] > 1]


def read_clipart(cache: Path) -> list[Drawing]:
    """Give Open Clip Art's drawings of things that have a short title of plain words."""
    root = cache / CLIPART.folder / "usr/share/openclipart/svg"
    found = []
    for folder in _CLIPART_FOLDERS:
        for path in sorted((root / folder).rglob("*.svg")):
            if path.stat().st_size > _LONGEST_FILE:
                continue
            svg = path.read_text(encoding="utf-8", errors="replace")
            title = re.search(r"<metadata.*?<dc:title[^>]*>([^<]*)</dc:title>", svg, re.DOTALL)
            name = " ".join(html.unescape(title[1]).split()) if title else ""
            if _TITLE.fullmatch(name) and len(name.split()) <= 3 and not _NO_NAMES.search(name):
                found.append(Drawing(name.lower(), "clipart", svg=svg))
    return found


def read_stamps(cache: Path) -> list[Drawing]:
    """Give Tux Paint's stamps with their line in English, without article and full stop."""
    found = []
    for path in sorted((cache / STAMPS.folder / "usr/share/tuxpaint/stamps").rglob("*.png")):
        text = path.with_suffix(".txt")
        if not text.is_file():
            continue
        line = text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        name = re.sub(r"^(an?|the|some)\s+", "", line.rstrip(".!").lower())
        if 0 < len(name.split()) <= 4:
            found.append(Drawing(name, "stamp", file=path))
    return found


def read_person(name: str) -> tuple[str, str, str] | None:
    """Read deed, gender and skin tone from an icon's name, if it is a person's who does something."""
    found = _PERSON.fullmatch(name)
    if found is None or _NO_DEED.match(found[2]):
        return None
    gender, deed, tone = (part.replace("-", " ") for part in found.groups())
    return deed, gender, tone


def _group(name: str) -> str:
    """Spell a group as most sets do; OpenMoji's leaves the "&" out."""
    return next((group for group in KINDS if group.replace(" &", "") == name), name)
