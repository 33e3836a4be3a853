"""The file that describes an experiment."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitllm_plugin.config import unknown_key
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.resources import find_config

MOST_SEEDS = 10


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        name: its name in tables and figures, and of its output folder.
        cfg_path: configuration file, as the user wrote it.
        options: overrides, each ``key.subkey=value``.
        group: the name that it shares with the runs that differ from it in their seed alone.
        processes: how many train it, one a GPU.
    """

    name: str
    cfg_path: str
    options: tuple[str, ...]
    group: str
    processes: int = 1

    @property
    def folder_name(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^\w+.-]+", "_", self.name)

    def fingerprint(self) -> str:
        """Give a hash of what the run is made from: the file's content and the options."""
        content = find_config(self.cfg_path).read_bytes()
        return hashlib.sha256(content + json.dumps(self.options).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """An experiment.

    Attributes:
        title: heading of the report.
        output_dir: where runs and report are written.
        runs: in the order in which they are started: with several seeds, all with the first one, then the next.
    """

    title: str
    output_dir: Path
    runs: tuple[PlannedRun, ...]

    def groups(self) -> dict[str, list[PlannedRun]]:
        """Give the runs by what they have in common, each with its seed."""
        groups: dict[str, list[PlannedRun]] = {}
        for run in self.runs:
            groups.setdefault(run.group, []).append(run)
        return groups


def read_plan(path: str | Path, options: Sequence[str] = (), processes: int | None = None) -> Plan:
    """Read an experiment's YAML file.

    Args:
        path: has ``title``, ``output_dir`` and ``runs``, a list of ``name``, ``cfg_path`` and optionally ``options``.
            ``options`` at the top go to every run; ``processes``, there or of a run, is how many train it. With
            ``seeds``, a list at the top, each is run once a seed.
        options: further overrides for every run, which win.
        processes: how many train each run; None for what the file says.

    Raises:
        ConfigError: a key that is missing or not known, a name used twice, or a configuration that does not exist.
    """
    from gitllm_plugin.host.config_file import load_config, resolve
    from gitllm_plugin.runners.saved_config import without_secrets

    path = find_config(path)
    loaded = load_config(path, "title, output_dir and runs")
    content = resolve(loaded, path)
    _check_keys(str(path), content, {"title", "output_dir", "runs", "options", "processes", "seeds"})
    if missing := [key for key in ("title", "output_dir", "runs") if not content.get(key)]:
        raise ConfigError(f"{path}: {', '.join(missing)} missing; an experiment has title, output_dir and runs")
    # Options become words of commands, which everybody on the machine can read; the run resolves what is left in them.
    written = without_secrets(loaded)
    shared = [*written.get("options", [])]
    common = content.get("processes", 1)
    runs = tuple(
        _read_run(path, entry, [*shared, *_options_of(text), *options], processes, common, seed)
        for seed in _check_seeds(path, content.get("seeds"))
        for entry, text in zip(content["runs"], written["runs"], strict=True)
    )
    names = [run.folder_name for run in runs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: runs have the same name: {', '.join(repeated)}")
    return Plan(str(content["title"]), Path(content["output_dir"]).expanduser(), runs)


def choose_runs(plan: Plan, only: Sequence[str]) -> list[PlannedRun]:
    """Give the runs that are named, or all; a name without a seed stands for the runs with all seeds.

    Raises:
        ConfigError: a name that the plan does not have.
    """
    known = {name for run in plan.runs for name in (run.name, run.group)}
    if unknown := sorted(set(only) - known):
        raise ConfigError(f"there is no run {', '.join(unknown)}; the runs are {', '.join(sorted(known))}")
    return [run for run in plan.runs if not only or not {run.name, run.group}.isdisjoint(only)]


def _check_seeds(path: Path, seeds: Any) -> Sequence[int | None]:
    if seeds is None:
        return [None]
    numbers = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not numbers or not 2 <= len(set(seeds)) == len(seeds) <= MOST_SEEDS:
        raise ConfigError(
            f"{path}: seeds is {seeds!r}, expected 2 to {MOST_SEEDS} different whole numbers, as [1, 2, 3]"
        )
    return seeds


def _read_run(
    path: Path, entry: Any, options: Sequence[str], asked: int | None, common: Any, seed: int | None
) -> PlannedRun:
    if not isinstance(entry, dict) or not entry.get("name") or not entry.get("cfg_path"):
        raise ConfigError(f"{path}: each run has a name and a cfg_path; got {entry!r}")
    _check_keys(f"{path}: run {entry['name']}", entry, {"name", "cfg_path", "options", "processes"})
    find_config(entry["cfg_path"])
    processes = entry.get("processes", common) if asked is None else asked
    if type(processes) is not int or processes < 1:
        raise ConfigError(
            f"{path}: run {entry['name']}: processes is {processes!r}, expected a whole number, 1 or more"
        )
    group = str(entry["name"])
    if seed is None:
        return PlannedRun(group, entry["cfg_path"], tuple(options), group, processes)
    if any(option.startswith("run.seed=") for option in options):
        raise ConfigError(f"{path}: run {group} has an option run.seed, and the experiment has seeds; leave out one")
    seeded = (*options, f"run.seed={seed}")
    return PlannedRun(f"{group}, seed {seed}", entry["cfg_path"], seeded, group, processes)


def _options_of(entry: Any) -> list[str]:
    return [*entry.get("options", [])] if isinstance(entry, dict) else []


def _check_keys(where: str, given: dict[Any, Any], known: set[str]) -> None:
    unknown = [unknown_key("", key, known) for key in given if key not in known]
    if unknown:
        raise ConfigError(f"{where}: " + "\n".join(unknown))
