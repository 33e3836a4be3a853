"""What a benchmark found, as JSON and as a page of Markdown, with date, hardware and versions."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gitllm_plugin.tables import Table

FOLDER = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "transformers", "peft", "gitllm-plugin")


def surroundings() -> dict[str, Any]:
    """Date, hardware and versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        "cores": len(_cores()),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def write(name: str, found: Mapping[str, Any], page: str, folder: Path = FOLDER) -> Path:
    """Write ``name.json`` and ``name.md`` into ``folder``; gives the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    path = folder / f"{name}.md"
    path.write_text(page.rstrip() + "\n")
    return path


def models_of(arguments: argparse.Namespace) -> str:
    """Give the options that named the models, by the last part of a folder: no place of a machine."""
    names = {"--language-model": arguments.language_model, "--image-encoder": arguments.image_encoder}
    return " ".join(f"{option} {Path(name).name}" for option, name in names.items())


def write_table(name: str, of: str, found: Table, folder: Path = FOLDER) -> Path:
    """Write a table as ``name.json``, of which ``docs/_build/results.py`` makes that of a page.

    Args:
        name: of the file.
        of: the command that measured.
        found: its cells, as they are to be read.
        folder: to write into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"of": of, "where": surroundings(), "header": list(found.header), "rows": [list(r) for r in found.rows]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Give a table of Markdown; all columns but the first are numbers."""
    return Table(header, [list(map(str, row)) for row in rows], numbers=range(1, len(header))).markdown()


def heading(title: str, where: Mapping[str, Any]) -> str:
    """Title and surroundings of a page."""
    listed = ", ".join(f"{name} {value}" for name, value in where.items() if value is not None)
    return f"# {title}\n\n{listed}.\n"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0)
