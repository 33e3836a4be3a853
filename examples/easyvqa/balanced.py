"""Yes/no questions whose text tells nothing: ``python -m examples.easyvqa.balanced``, after ``make demo``.

Most of easy-VQA's are answered by "no" whatever the picture: 83% are right without looking. Here each
question's text is kept as often with the answer yes as with no, and the blind guess is one half.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Sequence

from examples.easyvqa.commands import exit_status
from examples.easyvqa.data import SEED, Row, read_rows, write_rows
from examples.easyvqa.errors import DemoError
from examples.easyvqa.folders import replaced_folder
from examples.easyvqa.paths import Cache

SPLITS = ("train", "test")


def balance(rows: Sequence[Row]) -> list[Row]:
    """Draw of each question's text as many rows with yes as with no, all of the rarer answer.

    Args:
        rows: of yes/no questions.

    Returns:
        Rows in random order, the same each time.
    """
    rng = random.Random(SEED)
    by_text: dict[str, dict[str, list[Row]]] = defaultdict(lambda: {"yes": [], "no": []})
    for row in rows:
        by_text[row["inputs"]][row["outputs"]].append(row)
    kept: list[Row] = []
    for answers in by_text.values():
        number = min(map(len, answers.values()))
        kept += [row for same in answers.values() for row in rng.sample(same, number)]
    rng.shuffle(kept)
    return kept


def write_balanced(cache: Cache) -> None:
    """Write ``{train,test}/yesno.jsonl`` into the cache's folder of balanced questions, if it is not there.

    Raises:
        DemoError: the demonstration's data are not on this machine.
    """
    if not cache.data.is_dir():
        raise DemoError("the demonstration's data are not on this machine; `make demo` makes them")
    if not cache.balanced.is_dir():
        with replaced_folder(cache.balanced) as folder:
            for split in SPLITS:
                (folder / split).mkdir()
                write_rows(folder / split / "yesno.jsonl", balance(read_rows(cache.data / split / "yesno.jsonl")))
    for split in SPLITS:
        path = cache.balanced / split / "yesno.jsonl"
        print(f"{path}: {len(read_rows(path)):,} questions", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: write_balanced(Cache.from_environment())))
