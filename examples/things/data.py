"""Makes the rows: ``python -m examples.things data``."""

from __future__ import annotations

import json
from pathlib import Path

from examples.easyvqa.errors import DemoError
from examples.easyvqa.folders import replaced_folder
from examples.things.pictures import read_clipart, read_emoji, read_stamps
from examples.things.rows import SEED, Writer, divide, test_rows, train_rows
from examples.things.sources import EMOJI, fetch_sources

NAMES = "new_things.json"
"""Names of things never trained on, among which they are ranked."""


def make_data(cache: Path, target: Path) -> None:
    """Fetch pictures and write ``{train,test}/*.jsonl``, a file for each kind of question.

    Args:
        cache: gets the packages.
        target: the folder of the rows; it appears only when it is complete.

    Raises:
        DemoError: no emoji can be had.
    """
    missing = fetch_sources(cache)
    emoji = read_emoji(cache)
    if not emoji:
        names = ", ".join(source.name for source in EMOJI)
        raise DemoError(f"no emoji can be had, and all tests are made of them; make one of these reachable: {names}")
    parts = divide(emoji, [*read_clipart(cache), *read_stamps(cache)])
    with replaced_folder(target) as folder:
        writer = Writer(folder)
        for split, made in (("train", train_rows(parts)), ("test", test_rows(parts))):
            for name, rows in made:
                print(f"  {split}/{name}: {writer.write(split, name, rows):,} rows", flush=True)
        if writer.failed:
            print(f"  {writer.failed} drawings cannot be drawn and are left out", flush=True)
        facts = {"names": parts.names, "seed": SEED, "missing": missing, "not_drawn": writer.failed}
        (folder / NAMES).write_text(json.dumps(facts, indent=1), encoding="utf-8")
