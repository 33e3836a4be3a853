"""Catalog, checks and shards as text."""

from collections.abc import Mapping
from pathlib import Path

import orjson

from gitllm_plugin.common.files import write_atomically
from gitllm_plugin.m3it.catalog import CATALOG, PRESETS, SPLITS, Entry, get_preset
from gitllm_plugin.m3it.check import TreeReport
from gitllm_plugin.m3it.problems import KINDS
from gitllm_plugin.m3it.shards.format import SKIPS_NAME, SplitManifest
from gitllm_plugin.tables import Block, Table

_SHOWN = 3


def describe_catalog(preset: str | None = None) -> list[Block]:
    """Show the catalog, or what belongs to a preset, as a table with sums; without a preset, the presets too.

    Raises:
        ConfigError: if there is no such preset.
    """
    entries = get_preset(preset) if preset else list(CATALOG)
    header = ("configuration", "category", "data", *SPLITS, "answers", "form of rows", "folder", "licence")
    rows = [_describe_entry(entry) for entry in entries]
    sums = [f"{sum(entry.rows(split) or 0 for entry in entries):,}" for split in SPLITS]
    table = Table(header, [*rows, (f"{len(entries)} together", "", "", *sums, "", "", "", "")], numbers=(3, 4, 5))
    if preset:
        return [f"{preset}: {PRESETS[preset][0]}", table]
    names = [(name, str(len(get_preset(name))), PRESETS[name][0]) for name in PRESETS]
    return [table, Table(("preset", "configurations", "what it is"), names, numbers=(1,))]


def describe_report(report: TreeReport) -> list[Block]:
    """Show a check as a table, then what is missing and the first problems of each kind."""
    header = ("configuration", "split", "examples", "catalog", "rows", "images", "size", "broken")
    rows = [
        (
            split.config,
            split.split,
            f"{split.examples:,}",
            ("" if split.expected is None else f"{split.expected:,}") + ("" if split.agrees else " (!)"),
            f"{split.rows:,}",
            f"{split.images:,}",
            format_size(split.bytes),
            _format_kinds(split.kinds),
        )
        for split in report.splits
    ]
    blocks: list[Block] = [Table(header, rows, numbers=(2, 3, 4, 5, 6))]
    if report.missing:
        blocks.append("\n".join(["missing:", *(f"  {missing}" for missing in report.missing)]))
    # Some of each kind: a download that broke off has thousands alike, and the report's file has them all.
    for kind, meaning in KINDS.items():
        problems = [problem for split in report.splits for problem in split.problems if problem.kind == kind]
        if problems:
            lines = [f"{kind} ({meaning}): {len(problems):,}", *(f"  {each}" for each in problems[:_SHOWN])]
            lines += [f"  ... and {len(problems) - _SHOWN:,} more"] if len(problems) > _SHOWN else []
            blocks.append("\n".join(lines))
    looked = "decoded" if report.look == "pixel" else "checked by their headers only; --decode looks at every pixel"
    found = "all is well" if report.is_good else "something is missing or broken"
    return [*blocks, f"images were {looked}\n{found}"]


def describe_shards(finished: Mapping[tuple[str, str], SplitManifest], out: Path) -> list[Block]:
    """Show the splits that were finished as a table, and say where the rest is told."""
    if not finished:
        return [f"{out} is complete: there is nothing to do"]
    header = ("configuration", "split", "shards", "records", "examples", "images", "size", "left out")
    rows = [
        (
            *key,
            *(f"{number:,}" for number in (len(made.shards), made.groups, made.texts, made.images)),
            format_size(made.bytes),
            _format_kinds(made.skips),
        )
        for key, made in finished.items()
    ]
    blocks: list[Block] = [Table(header, rows, numbers=(2, 3, 4, 5, 6))]
    if any(made.skips for made in finished.values()):
        blocks.append(f"what was left out is listed in {out}/<configuration>/<split>/{SKIPS_NAME}")
    return blocks


def write_report(report: TreeReport, path: Path) -> None:
    """Write a check's report as JSON."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write_atomically(path, orjson.dumps(report.to_json(), option=options))


def format_size(size: float) -> str:
    """Write a number of bytes in the unit that suits it: ``8.8 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def _describe_entry(entry: Entry) -> tuple[str, ...]:
    data = f"{entry.language} {entry.modality}s"
    counts = ["?" if entry.rows(split) is None else f"{entry.rows(split):,}" for split in SPLITS]
    return (
        entry.name, entry.category, data, *counts, entry.kind, entry.adapter, entry.folder, entry.licence,
    )  # fmt: skip


def _format_kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
