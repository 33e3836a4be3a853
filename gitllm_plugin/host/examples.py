"""Questions that a model was trained to answer: from the data of the run that it comes from, where that is here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gitllm_plugin.errors import GitLLMError

if TYPE_CHECKING:
    from gitllm_plugin.inference.asking import Question
    from gitllm_plugin.m3it.group import Group
    from gitllm_plugin.m3it.rows import RowReader

MOST_EXAMPLES = 6
_OF_A_FILE, _ROWS_LOOKED_AT = 2, 200
_SPLITS = ("test", "val", "train")
"""The first that there is is taken: what was not trained on before what was."""


def examples_of(model: str | Path) -> list[Question]:
    """Find a few, of different pictures and configurations.

    Args:
        model: a run's folder or checkpoint, or a folder that was exported of one and lies beside it: where the run is
            on the machine that exported it is not written down.

    Returns:
        None at all where the run's rows cannot be read: examples are no reason to stop.
    """
    try:
        return list(islice(_choose(_data_sets(Path(model).expanduser())), MOST_EXAMPLES))
    except (GitLLMError, OSError, ValueError, KeyError, TypeError, ImportError):
        return []


def _data_sets(model: Path) -> list[Mapping[str, Any]]:
    """Read where the run had its data."""
    from gitllm_plugin.host.config_file import load_config, resolve
    from gitllm_plugin.host.export import find_files
    from gitllm_plugin.modeling.description import DESCRIPTION

    if (model / DESCRIPTION).is_file():
        run = json.loads((model / DESCRIPTION).read_text(encoding="utf-8"))["settings"]["run"]
        if not isinstance(run, str) or len(parts := Path(run).parts) > 2 or {"..", "/"} & set(parts):
            return []  # written by a stranger: it may name a run beside it, and nothing else of this machine
        model = model.resolve().parent / run
    path = find_files(model)[1]
    config = resolve(load_config(path), path)
    return [node["build_info"] for node in (config.get("datasets") or {}).values() if node.get("build_info")]


def _choose(data_sets: Iterable[Mapping[str, Any]]) -> Iterator[Question]:
    """Give a few questions of each configuration, about pictures that no other is about."""
    from gitllm_plugin.inference.asking import Question
    from gitllm_plugin.m3it.prompts import default_instruction

    seen = set()
    for groups in map(_read, data_sets):
        for rows in groups:
            found = 0
            for group in islice(rows, _ROWS_LOOKED_AT):
                text = group.texts[0]
                if group.images and group.images not in seen and found < _OF_A_FILE:
                    seen.add(group.images)
                    found += 1
                    usual = text.instruction.strip() in ("", default_instruction(text.question))
                    yield Question(group.images, text.question, None if usual else text.instruction)


def _read(data: Mapping[str, Any]) -> Iterator[Iterator[Group]]:
    """Read the files of a data set, one after another; of a configuration's first split in :data:`_SPLITS`."""
    from gitllm_plugin.m3it.catalog import get_preset
    from gitllm_plugin.m3it.rows import RowReader
    from gitllm_plugin.m3it.tree import find_sources, find_tree

    if "annotations" in data:
        split = min(data["annotations"], key=lambda name: (*_SPLITS, name).index(name))
        for source in find_sources(data["annotations"][split]["storage"]):
            config = source.config or source.path.parent.name
            yield _rows(source.path, RowReader(config, split, "uniform", split, row_config=source.config is None))
    elif "root" in data:
        configs = data.get("configs") or [entry.name for entry in get_preset(data["preset"])]
        tree = find_tree(data["root"], [configs] if isinstance(configs, str) else configs)
        for files in sorted(tree.splits, key=lambda each: _SPLITS.index(each.split)):
            yield _rows(files.paths[0], files.readers[0])


def _rows(path: Path, reader: RowReader) -> Iterator[Group]:
    from gitllm_plugin.m3it.tables import open_table

    table = open_table(path)
    for row in table.rows(0, table.end, 1):
        group, _ = reader.read(row.content, row.line)
        if group is not None:
            yield group
