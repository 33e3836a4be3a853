"""Pictures with captions, for the statistics: rows of M3IT, or a folder of picture files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.inference.pictures import find_pictures
from gitllm_plugin.m3it.examples import JsonlExamples
from gitllm_plugin.m3it.images import decode_image
from gitllm_plugin.m3it.pictures import open_picture
from gitllm_plugin.m3it.tree import find_sources


@dataclass(frozen=True)
class CaptionedPicture:
    """One picture.

    Attributes:
        name: where it is from, for messages.
        picture: RGB.
        captions: what is said of it; empty where nothing is.
    """

    name: str
    picture: Image.Image
    captions: tuple[str, ...]


def read_collection(storage: str, limit: int) -> Iterator[CaptionedPicture]:
    """Read pictures one by one.

    Args:
        storage: JSONL files of M3IT rows (wildcards allowed), of which the answers are the captions; rows about one
            picture are put together. Or a folder of pictures, the caption of ``cat.png`` in ``cat.txt`` beside it.
        limit: most pictures.

    Raises:
        DataError: there are none, or one is broken.
    """
    folder = Path(storage).expanduser()
    return islice(_read_folder(folder) if folder.is_dir() else _read_rows(storage), limit)


def check_collection(storage: str) -> None:
    """Look whether :func:`read_collection` would find pictures, without reading one.

    Raises:
        DataError: there are none.
    """
    folder = Path(storage).expanduser()
    if folder.is_dir():
        find_pictures(folder)
    else:
        find_sources(storage)


def _read_folder(folder: Path) -> Iterator[CaptionedPicture]:
    for path in find_pictures(folder):
        text = path.with_suffix(".txt")
        try:
            captions = (text.read_text(encoding="utf-8").strip(),) if text.is_file() else ()
        except UnicodeDecodeError as error:
            raise DataError(f"{text} is not UTF-8 ({error}); save it as UTF-8") from error
        yield CaptionedPicture(str(path), open_picture(path), captions)


def _read_rows(storage: str) -> Iterator[CaptionedPicture]:
    examples = JsonlExamples(find_sources(storage))
    rows_of: dict[str, list[int]] = {}
    for index in range(len(examples)):
        rows_of.setdefault(examples.image_key(index), []).append(index)
    for rows in rows_of.values():
        group, place = examples.read(rows), examples.place_of(rows[0])
        captions = tuple(answer for text in group.texts for answer in text.answers)
        yield CaptionedPicture(place, decode_image(group.images[0], place), captions)
