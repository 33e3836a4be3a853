"""From a table to files of uniform rows: all of it, or what is wrong with it."""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from gitllm_plugin.common.files import atomic_file, check_writable, scratch_folder
from gitllm_plugin.errors import ConfigError, DataError
from gitllm_plugin.m3it.from_table.cells import read_list, read_text
from gitllm_plugin.m3it.from_table.coco import picture_root
from gitllm_plugin.m3it.from_table.hub_sets import read_dataset
from gitllm_plugin.m3it.from_table.picture_folder import PictureFolder
from gitllm_plugin.m3it.from_table.pictures import Pictures
from gitllm_plugin.m3it.from_table.reading import read_records
from gitllm_plugin.m3it.from_table.records import Read, Record
from gitllm_plugin.m3it.from_table.settings import SPLITS, FromTable
from gitllm_plugin.m3it.from_table.splits import Dealer, Shown
from gitllm_plugin.m3it.problems import KINDS, RowError
from gitllm_plugin.m3it.prompts import default_instruction

_MAX_REPORTED = 10
_MAX_PLACES = 3  # of one fault

Tell = Callable[[str], None]


def convert_table(
    table: str | Path | Sequence[str | Path],
    output: Path,
    settings: FromTable | None = None,
    tell: Tell | None = None,
) -> dict[str, int]:
    """Write ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, those that have rows.

    Pictures are dealt to the splits by a hash of the files that were given: all rows about one picture, and all that
    are linked by rows with several, are in one split; and the same picture is in the same split whenever it is
    converted again, whatever its size is made and whatever other rows there are.

    Args:
        table: CSV, TSV, JSON lines, JSON or parquet; conversations in JSON, see
            :func:`gitllm_plugin.m3it.from_table.conversations.read_conversation`; or a folder of pictures, see
            :func:`gitllm_plugin.m3it.from_table.folders.read_folder`. A list in JSON and parquet, or a cell of CSV that
            is divided by ``|``, may name several pictures or accepted answers. COCO's dictionaries, see
            :func:`gitllm_plugin.m3it.from_table.coco.read_coco`. Several files are one table; if their names say
            different splits, their rows are in these.
        output: the folder to write into; files of the same name are replaced.
        settings: how.
        tell: is told what was not read, passed over or may not be as it was meant; None: a warning of Python's.

    Returns:
        How many rows each split has. Their sum is that of the table's rows; each caption of COCO's in the training
        split is a row, those of an image in another split are the accepted answers of one.

    Raises:
        ConfigError: table, output and settings do not go together.
        DataError: the table or a row of it cannot be used; every fault is counted, the first ten are shown,
            each once, and nothing is written.
        StorageError: the output cannot be written.
    """
    settings = settings or FromTable()
    tell = tell or _warn
    tables = tables_of(table)
    output = Path(output).expanduser()
    names = [f"{split}.jsonl" for split in SPLITS]
    for each in tables:
        if each.name in names and each.resolve() == (output / each.name).resolve():
            raise ConfigError(f"{each} would be replaced by what is made of it; name another folder than {output}")
    check_writable(output)
    folders = {each if each.is_dir() else settings.images or each.parent for each in tables}
    if len(folders) > 1 and settings.images is None:
        raise ConfigError(
            f"the tables lie in {len(folders)} folders ({', '.join(sorted(map(str, folders)))}); name that of the "
            "pictures (images), or put them into one"
        )
    pictures = Pictures(folders.pop(), settings.short_side)
    records = read_records(tables, settings, pictures.is_picture, tell)
    title = str(tables[0]) if len(tables) == 1 else f"{tables[0]} and {len(tables) - 1} more"
    advise = partial(_advise, pictures, tables[0])
    return _convert(title, name_of(tables), records, pictures, output, settings, tell, advise)


def _advise(pictures: Pictures, table: Path) -> str:
    """Say where pictures were looked for that are not there, and where one of them is."""
    if table.is_dir() or not pictures.missing:
        return ""
    start = PictureFolder(picture_root(table)).start_of(pictures.missing[0])
    if start is None and pictures.found_any:
        return ""
    there = f"; {pictures.missing[0]} is there with --images {os.path.relpath(start)}" if start else ""
    return f"\nNames of pictures are read from {pictures.folder} on, another folder is given as --images{there}"


def tables_of(table: str | Path | Sequence[str | Path]) -> list[Path]:
    """List what one or several tables were given."""
    return [Path(each).expanduser() for each in ([table] if isinstance(table, (str, Path)) else table)]


def name_of(tables: Sequence[Path]) -> str:
    """Give tables one name: that of a folder or file, or what the names of several files begin with."""
    if len(tables) == 1:
        name = tables[0].resolve().name if tables[0].is_dir() else tables[0].stem
    else:
        name = os.path.commonprefix([each.stem for each in tables]).rstrip("_-. ") or tables[0].resolve().parent.name
    # orjson refuses names of files that are no UTF-8.
    return name.encode("utf-8", "replace").decode() or "table"


def convert_dataset(
    name: str, output: str | Path, settings: FromTable | None = None, tell: Tell | None = None
) -> dict[str, int]:
    """Do the same with a data set of the hub, see :func:`gitllm_plugin.m3it.from_table.hub_sets.read_dataset`.

    Rows are read one by one. Texts are kept in memory; pictures that are in the data itself are kept in a folder of the
    output's until the end.

    Args:
        name: a folder or file on this machine, or a data set's name on the hub.
        output, settings, tell: as for :func:`convert_table`.

    Raises:
        ConfigError: the library ``datasets`` is needed and not installed, or settings do not go together.
        DataError, StorageError: as :func:`convert_table`.
    """
    settings = settings or FromTable()
    tell = tell or _warn
    output, local = Path(output).expanduser(), Path(name).expanduser()
    check_writable(output)
    folder = settings.images or (local if local.is_dir() else local.parent)
    with scratch_folder(output / "pictures") as scratch:
        pictures = Pictures(folder, settings.short_side, scratch)
        config = re.sub(r"[^\w.-]+", "-", local.stem if local.is_file() else name.rstrip("/").split("/")[-1])
        return _convert(name, config, read_dataset(name, settings, tell), pictures, output, settings, tell)


def _convert(
    table: str,
    config: str,
    records: Iterable[Read],
    pictures: Pictures,
    output: Path,
    settings: FromTable,
    tell: Tell,
    advise: Callable[[], str] = str,
) -> dict[str, int]:
    rows, problems = _read(config, records, pictures, settings.text_only)
    dealer = Dealer([row.shown for row in rows], settings)
    splits = []
    for row in rows:
        try:
            splits.append(dealer.deal(row.shown))
        except RowError as error:
            problems.append(error)
    if rows or problems:
        _write(table, output, rows, splits, pictures, problems, advise)
    else:
        raise DataError(f"{table} has no rows")
    for note in (*dealer.describe(splits), *_repeated(rows), *_unpaired(rows), *_left(output, splits)):
        tell(note)
    if alone := sum(not row.paths for row in rows):
        tell(f"rows without an image: {alone:,}; training takes them with allow_text_only: true")
    counts: Counter[str] = Counter()
    for row, split in zip(rows, splits, strict=True):
        counts[split] += len(row.in_split(split))
    return {split: counts[split] for split in SPLITS if counts[split]}


@dataclass(frozen=True)
class _Row:
    """A row whose text was read, and whose pictures are there."""

    content: dict[str, Any]
    paths: Sequence[Path]
    shown: Shown
    each: bool

    def in_split(self, split: str) -> list[dict[str, Any]]:
        """Give what is written: one row, or in training one for each of the answers that are all learnt from."""
        answers = self.content["outputs"]
        if not (self.each and split == "train" and isinstance(answers, list)):
            return [self.content]
        name = self.content["id"]
        return [{**self.content, "id": f"{name}/{n}", "outputs": text} for n, text in enumerate(answers)]


def _read(
    config: str, records: Iterable[Read], pictures: Pictures, text_only: bool
) -> tuple[list[_Row], list[RowError]]:
    rows: list[_Row] = []
    problems: list[RowError] = []
    place_of_id: dict[str, str] = {}
    for read in records:
        if isinstance(read, RowError):
            problems.append(read)
            continue
        try:
            row = _read_row(read, config, pictures, text_only)
            row_id = row.content["id"]
            if row_id in place_of_id:
                raise RowError("duplicate_id", f"the id {row_id!r} is that of {place_of_id[row_id]} too", read.place)
            place_of_id[row_id] = read.place
            rows.append(row)
        except RowError as error:
            problems.append(error)
    return rows, problems


def _read_row(record: Record, config: str, pictures: Pictures, text_only: bool) -> _Row:
    place = record.place
    text = {
        column: read_text(record.cells.get(column), column, place)
        for column in ("question", "rejected", "instruction", "id", "split")
    }
    paths = _paths(record, pictures, text_only)
    answers = read_list(record.cells["answer"], "answer", place, record.divided)
    if not record.each and len(set(answers)) < len(answers):
        # Of several annotators' answers the most frequent is trained on, as they are in VQA's lists.
        counts = Counter(answers)
        answers.sort(key=counts.__getitem__, reverse=True)
    if text["split"] not in ("", *SPLITS):
        raise RowError("wrong_value", f"the split is {text['split']!r}, expected one of {', '.join(SPLITS)}", place)
    content = {
        "id": text["id"] or read_text(record.name, "id", place),
        "config": config,
        "instruction": text["instruction"] or default_instruction(text["question"]),
        "inputs": text["question"],
        "image_base64_str": "",  # comes when it is written
        "outputs": answers[0] if len(answers) == 1 else answers,
    }
    if text["rejected"]:
        if text["rejected"] in answers:
            raise RowError("wrong_value", f"the rejected answer is the right one, {text['rejected']!r}", place)
        content["rejected"] = text["rejected"]
    if turns := record.cells.get("turns"):
        content["turns"] = [[read_text(said, "turns", place) for said in turn] for turn in turns]
    # Without pictures, rows of the same words are dealt together.
    words = [hashlib.sha256(orjson.dumps({**content, "id": ""})).digest()]
    each, whole = pictures.digest(paths, place) if paths else (words, words[0])
    return _Row(content, paths, Shown(each, whole, text["split"], place), record.each)


def _paths(record: Record, pictures: Pictures, text_only: bool) -> list[Path]:
    cell, place = record.cells["image"], record.place
    if cell == [] and "turns" in record.cells:
        if text_only:
            return []
        raise RowError(
            "no_image",
            "the conversation has no image ('image', 'images' or in a turn); remove it, or give --allow-text-only and "
            "train with allow_text_only: true",
            place,
        )
    kept = [pictures.kept(each, place) for each in (cell if isinstance(cell, list) else [cell])]
    if kept and None not in kept:
        return [path for path in kept if path is not None]
    return [pictures.find(name, place) for name in read_list(cell, "image", place, record.divided)]


def _write(
    table: str,
    output: Path,
    rows: Sequence[_Row],
    splits: Sequence[str],
    pictures: Pictures,
    problems: list[RowError],
    advise: Callable[[], str],
) -> None:
    """Write all rows, or look at all pictures and say what is wrong."""
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for number, row in enumerate(rows):
            try:
                images = [pictures.encode(path, row.shown.place) for path in row.paths]
            except RowError as error:
                problems.append(error)
            # From the first fault on nothing is written any more, but all other rows are still looked at.
            if problems:
                continue
            split = splits[number]
            if split not in files:
                files[split] = stack.enter_context(atomic_file(output / f"{split}.jsonl"))
            for content in row.in_split(split):
                content = {**content, "image_base64_str": images[0] if len(images) == 1 else images}
                files[split].write(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))
        if problems:
            raise DataError(_explain(table, problems) + advise())
        # A disk that is full is known before the first of them takes its name.
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())


def _explain(table: str, problems: Sequence[RowError]) -> str:
    same: dict[str, list[str]] = {}  # message -> places
    for problem in problems:
        same.setdefault(problem.message, []).append(problem.place)
    shown = list(same.items())[:_MAX_REPORTED]
    listed = "\n  ".join(f"{_few(places)}: {message}" for message, places in shown)
    more = len(problems) - sum(len(places) for _, places in shown)
    rest = ""
    if more > 0:
        kinds = Counter(problem.kind for problem in problems)
        counts = "; ".join(f"{count:,} {kind} ({KINDS[kind]})" for kind, count in kinds.most_common())
        rest = f"\n  ... and {more:,} more. In all: {counts}"
    noun = "row" if len(problems) == 1 else "rows"
    return f"{table}: {len(problems)} {noun} cannot be used, nothing was written:\n  {listed}{rest}"


def _few(places: Sequence[str]) -> str:
    """Name the first of the places that one thing is wrong with."""
    more = len(places) - _MAX_PLACES
    return ", ".join(places[:_MAX_PLACES]) + (f" and {more:,} more" if more > 0 else "")


def _repeated(rows: Sequence[_Row]) -> list[str]:
    first: dict[tuple, str] = {}
    repeated = []
    for row in rows:
        content = row.content
        said = str((content["outputs"], content.get("turns"), content.get("rejected")))
        key = (row.shown.whole, content["instruction"], content["inputs"], said)
        if first.setdefault(key, row.shown.place) != row.shown.place:
            repeated.append(f"{row.shown.place} is {first[key]} again")
    return [f"rows that stand twice, and are kept: {len(repeated):,}, the first: {repeated[0]}"] if repeated else []


def _unpaired(rows: Sequence[_Row]) -> list[str]:
    alone = [row.shown.place for row in rows if "rejected" not in row.content]
    if not alone or len(alone) == len(rows):
        return []
    many = f"{len(alone):,}, the first: {alone[0]}"
    return [f"rows without a rejected answer, which preferences cannot be learnt from: {many}"]


def _left(output: Path, splits: Sequence[str]) -> list[str]:
    left = [f"{split}.jsonl" for split in SPLITS if split not in splits and (output / f"{split}.jsonl").exists()]
    return [
        f"{output / name} is of an earlier conversion and not of this table; its pictures may be in other splits now"
        for name in left
    ]


def _warn(note: str) -> None:
    warnings.warn(note, stacklevel=4)
