"""The examples of uniform M3IT JSONL files, all of which must be right."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.examples import IndexedExamples, ScannedFile, find_duplicates
from gitllm_plugin.m3it.files import Source
from gitllm_plugin.m3it.problems import Problem
from gitllm_plugin.m3it.rows import ROW_SCHEMA, RowReader
from gitllm_plugin.m3it.scan import Scan, cut_file, scan_part
from gitllm_plugin.m3it.tables import get_version, open_table

MAX_REPORTED = 10
_PART_BYTES = 32 * 2**20  # between two steps of the progress bar
_PROGRESS_FROM_BYTES = 64 * 2**20


class JsonlExamples(IndexedExamples):
    """The examples of several files of uniform rows, in the order of files and rows.

    Args:
        sources: the files (:func:`gitllm_plugin.m3it.files.find_sources`): JSONL, parquet, or folders that the
            ``datasets`` library saved.
        allow_text_only: whether rows may come without an image.
        limit: read only the first ``limit`` rows of each file, for a quick try; the rest is not checked.

    Raises:
        DataError: if a row cannot be used (every fault is counted, the first ten are shown with file, line
            and reason), if two rows have the same id, or if a file has no row.
    """

    def __init__(self, sources: Sequence[Source], *, allow_text_only: bool = False, limit: int | None = None):
        files, problems = [], []
        with _progress(sources) as progress:
            for source, label in zip(sources, _label_sources(sources), strict=True):
                file = _scan_file(source, label, allow_text_only, limit, progress)
                files.append(file)
                problems += file.scan.problems
                if not file.scan.rows:
                    message = "the file is empty; name a file that has rows, or remove it"
                    problems.append(Problem(str(source.path), 0, "wrong_value", message))
        problems += find_duplicates([(str(file.path), file.scan) for file in files])
        _raise_if_any(problems)
        super().__init__(files)


def _scan_file(source: Source, label: str, allow_text_only: bool, limit: int | None, progress: tqdm) -> ScannedFile:
    reader = RowReader(
        config=source.config or source.path.parent.name,
        split=label,
        adapter="uniform",
        label=label,
        text_only=allow_text_only,
        row_config=source.config is None,
    )
    version = get_version(open_table(source.path))
    scan = Scan()
    for part in cut_file(source.path, str(source.path), reader, _PART_BYTES):
        # Images are not looked at: with base64 in order, a broken one is told when it is read.
        scan.add(scan_part(part, look="base64", limit=None if limit is None else limit - scan.rows))
        progress.update(part.end - part.start)
    return ScannedFile(source.path, reader, version, scan)


def _raise_if_any(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    noun = "problem" if len(problems) == 1 else "problems"
    more = len(problems) - MAX_REPORTED
    lines = [
        f"{len(problems)} {noun} in the M3IT files:",
        *(
            str(problem) if problem.line else f"{problem.file}: {problem.message}"
            for problem in problems[:MAX_REPORTED]
        ),
        *([f"... and {more} more"] if more > 0 else []),
    ]
    raise DataError("\n  ".join(lines) + f"\nExpected: {ROW_SCHEMA}.")


def _progress(sources: Sequence[Source]) -> tqdm:
    total = sum(open_table(source.path).end for source in sources)
    hidden = total < _PROGRESS_FROM_BYTES or not sys.stderr.isatty()
    return tqdm(total=total, unit="B", unit_scale=True, desc="Checking M3IT files", disable=hidden, file=sys.stderr)


def _label_sources(sources: Sequence[Source]) -> list[str]:
    """A short name for each file, for the ids of rows that have none: its stem, numbered where it repeats."""
    labels: list[str] = []
    for source in sources:
        stem = source.path.stem
        label, repeat = stem, 2
        while label in labels:
            label, repeat = f"{stem}-{repeat}", repeat + 1
        labels.append(label)
    return labels
