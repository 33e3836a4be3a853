"""A folder of pictures as a table: folders named after what their pictures show, or a ``.txt`` beside each picture."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.from_table.pictures import has_picture_ending
from gitllm_plugin.m3it.from_table.records import Read, Record
from gitllm_plugin.m3it.from_table.settings import SPLIT_OF
from gitllm_plugin.m3it.from_table.text_files import read_text_file
from gitllm_plugin.m3it.problems import RowError
from gitllm_plugin.m3it.table_kinds import TABLES

_SHOWN = 12  # kinds


def read_folder(folder: Path, encoding: str | None, tell: Callable[[str], None]) -> Iterator[Read]:
    """Read the pictures of a folder and of the folders in it, in alphabetical order.

    With a ``.txt`` beside any picture, the text beside each is its answer, wherever it lies. With none, the answer is
    the name of the folder that a picture lies in. Folders with the names of splits (`train`, `val`, `Validation`,
    `test`, ...), if there are no others at the top, are splits. What begins with a dot is not looked at.

    Args:
        folder: where.
        encoding: of the texts, see :func:`gitllm_plugin.m3it.from_table.text_files.read_text_file`.
        tell: is told what is not read, and which kinds there are.

    Raises:
        DataError: there is no picture in it.
    """
    files = _find_files(folder, tell)
    pictures = [path for path in files if has_picture_ending(path.name)]
    if not pictures:
        raise DataError(f"{folder} holds no picture file; name a folder of pictures, or a table")
    beside = {path.with_suffix(""): path for path in reversed(files) if path.suffix.lower() == ".txt"}
    captions = {picture: beside[stem] for picture in pictures if (stem := picture.with_suffix("")) in beside}
    depth = 2 if captions else 3  # of a picture's path below a split
    tops = {picture.parts[0] for picture in pictures}
    in_splits = {top.lower() for top in tops} <= set(SPLIT_OF) and all(len(each.parts) >= depth for each in pictures)
    if in_splits:
        tell(f"{folder}: its folders are the splits {', '.join(sorted(tops))}")
    kinds: Counter[str] = Counter()
    for picture in pictures:
        place = str(folder / picture)
        try:
            if picture in captions:
                answer = _read_caption(folder / captions[picture], encoding)
            elif captions:
                raise RowError(
                    "empty_answer", f"no .txt lies beside it, as one does beside others ({len(captions):,})", place
                )
            else:
                answer = _read_class(picture.parts, 1 if in_splits else 0, folder)
                kinds[answer] += 1
        except RowError as error:
            yield error
            continue
        # A path from the folder on, as in any table; the whole folder may move.
        split = SPLIT_OF[picture.parts[0].lower()] if in_splits else ""
        cells = {"image": [str(picture)], "answer": [answer], "split": split}
        yield Record(picture.as_posix(), place, cells)
    _tell_kinds(folder, kinds, tell)
    read = {*pictures, *captions.values()}
    _tell_rest(folder, [path for path in files if path not in read], tell)


def _find_files(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """List all files, relative to the folder."""
    found: list[Path] = []
    seen = {folder.resolve()}

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be looked into ({error.strerror})") from error

    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        inside = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            # A link to a folder above would lead round and round.
            if (inside / name).resolve() in seen:
                folders.remove(name)
                tell(f"{inside / name} is a link to a folder that is read already, and is not read again")
            seen.add((inside / name).resolve())
        found += [(inside / name).relative_to(folder) for name in files if not name.startswith(".")]
    return sorted(found)


def _read_caption(path: Path, encoding: str | None) -> str:
    try:
        return read_text_file(path, encoding).strip()
    except DataError as error:
        raise RowError("utf8", str(error)) from error


def _read_class(parts: tuple[str, ...], above: int, folder: Path) -> str:
    """Give the folder that names what a picture shows; ``above`` folders of its path are none of those."""
    folders, place = parts[above:-1], str(folder.joinpath(*parts))
    if not folders:
        raise RowError(
            "empty_answer",
            "it lies in no folder that is named after what it shows, and has no .txt beside it; move it into one, "
            "write one, or make a table",
            place,
        )
    if len(folders) > 1:
        raise RowError(
            "wrong_value",
            f"it lies {len(folders)} folders deep, and any of {', '.join(map(repr, folders))} may be what it shows; "
            f"give {folder.joinpath(*parts[: above + 1])}, which has folders of one kind each, move it up, or make a "
            "table",
            place,
        )
    return "".join(folders)  # the one that there is


def _tell_kinds(folder: Path, kinds: Counter[str], tell: Callable[[str], None]) -> None:
    listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(_SHOWN))
    if len(kinds) == 1:
        tell(f"{folder}: all pictures are of one kind, {listed}: nothing else can be learnt; give folders of several")
    elif kinds:
        more = f" and {len(kinds) - _SHOWN:,} more" if len(kinds) > _SHOWN else ""
        tell(f"{folder}: {len(kinds):,} kinds, the names of its folders: {listed}{more}")


def _tell_rest(folder: Path, rest: list[Path], tell: Callable[[str], None]) -> None:
    if rest:
        kinds = Counter(path.suffix.lower() or "no ending" for path in rest)
        listed = ", ".join(f"{count:,} of {kind}" for kind, count in sorted(kinds.items()))
        tell(f"{folder}: files that are not read: {len(rest):,} ({listed}), the first: {rest[0]}")
    table = next((path for path in rest if path.suffix.lower() in TABLES), None)
    if table is not None:
        tell(f"{folder}: to use the table {table}, give it in the folder's place")
