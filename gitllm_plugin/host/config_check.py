"""Check a configuration before anything is built, all errors at once.

LAVIS answers an unknown name with None and an AttributeError far away, and ignores keys it does not know.
"""

import difflib
import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.config import Checked, check, unknown_key
from gitllm_plugin.config.options import as_assignments
from gitllm_plugin.config.run import LaunchSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.resources import find_config

_SECTIONS = ("model", "datasets", "run")


def check_config(cfg_path: str | Path, options: Sequence[str] = (), evaluating: bool = False) -> None:
    """Check a configuration file and the options that override it. LAVIS must have been prepared.

    Checked: that the names of model, model type, task, runner, schedule, data sets, their types and processors exist in
    LAVIS's registries; keys, types, bounds and what has to go together, for classes that declare what they read as
    ``Settings`` (:mod:`gitllm_plugin.config`); and that some data set has the splits that are named. Values that are
    given and have no effect are told in a warning.

    Args:
        cfg_path: YAML file with the sections ``model``, ``datasets`` and ``run``.
        options: overrides, each ``key.subkey=value``.
        evaluating: whether nothing is to be trained, as ``run.evaluate`` also says.

    Raises:
        ConfigError: one message with every error found.
    """
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(_load(find_config(cfg_path)), _parse_options(options))
    given = _resolved(merged, cfg_path)
    found = _check(given, evaluating)
    if found.faults:
        count = len(found.faults)
        listed = "\n".join(f"  - {fault}" for fault in found.faults)
        raise ConfigError(f"{cfg_path}: {count} error{'s' if count > 1 else ''}\n{listed}")
    if os.environ.get("RANK", "0") == "0":  # torchrun's: every process checks, and one tells
        for note in found.notes:
            _tell(f"{cfg_path}: {note}")


def _check(given: Mapping[str, Any], evaluating: bool) -> Checked:
    """What is wrong, in the order of the sections."""
    model, datasets, run = (_section(given, name) for name in _SECTIONS)
    known: dict[str, Any] = {"run.training": not (evaluating or run.get("evaluate") is True), **_machine()}
    # Each of these may be asked for by the rules of the next.
    of_datasets = _check_datasets(datasets, known)
    known |= {f"datasets.{key}": value for key, value in of_datasets.values.items()}
    of_run = _check_run(run, known) if run else Checked()
    known |= {f"run.{key}": value for key, value in of_run.values.items()}
    of_model = _check_model(model, known) if model else Checked()
    sections = Checked(faults=[*_check_sections(given)])
    parts = (sections, of_model, of_datasets, of_run)
    return Checked(
        faults=[fault for part in parts for fault in part.faults],
        notes=[note for part in parts for note in part.notes],
    )


@functools.cache
def _tell(note: str) -> None:
    """Warn, once: a dry run checks its configuration twice."""
    logging.warning("%s", note)


def _load(path: Path):
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.load(path)
    except _unreadable() as error:
        raise ConfigError(f"{path} is not a YAML file that can be read: {error}") from error
    if not OmegaConf.is_dict(config) or not config:
        raise ConfigError(f"{path} must hold the sections {', '.join(_SECTIONS)}, each a mapping")
    return config


def _parse_options(options: Sequence[str]):
    from omegaconf import OmegaConf

    options = as_assignments(options)
    wrong = [option for option in options if not option.partition("=")[0] or "=" not in option]
    if wrong:
        raise ConfigError(
            "--options takes key.subkey=value, separated by spaces (quote what the shell would split); "
            f"got {', '.join(repr(option) for option in wrong)}"
        )
    try:
        return OmegaConf.from_dotlist(options)
    except _unreadable() as error:
        raise ConfigError(f"--options {' '.join(options)}: {error}") from error


def _resolved(config, cfg_path: str | Path) -> Any:
    """The configuration as plain dictionaries, interpolations (``${run.seed}``) replaced by their values."""
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_container(config, resolve=True)
    except _unreadable() as error:
        raise ConfigError(f"{cfg_path}: {error}") from error


def _unreadable() -> tuple[type[Exception], ...]:
    """What OmegaConf raises for text that it cannot read."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    return (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError)


def _machine() -> dict[str, Any]:
    """What rules may ask of this machine: whether it has a GPU, and that files may be looked for."""
    import torch

    return {"machine.gpu": torch.cuda.is_available(), "machine.files": True}


def _section(config: Any, name: str) -> Mapping:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _check_sections(config: Any) -> Iterable[str]:
    for name in _SECTIONS:
        if not isinstance(config.get(name), Mapping) or not config[name]:
            yield f"the section '{name}' is missing or not a mapping"
    sections = {*_SECTIONS, "preprocess"}
    yield from (unknown_key("", key, sections, "Sections") for key in config if key not in sections)


def _registered(kind: str) -> Mapping[Any, Any]:
    """LAVIS's registry of one kind ("model", "task", ...): name -> class."""
    from lavis.common.registry import registry

    return registry.mapping[f"{kind}_name_mapping"]


def _settings_of(owner: Any) -> type | None:
    """What a registered class declares that it reads; None for LAVIS's own."""
    return getattr(owner, "Settings", None)


def _check_model(model: Mapping, known: Mapping[str, Any]) -> Checked:
    models = _registered("model")
    arch, name = model.get("arch"), model.get("model_type")
    if arch not in models:
        return Checked(faults=[_unknown("model.arch", arch, models, "models")])
    files = getattr(models[arch], "PRETRAINED_MODEL_CONFIG_DICT", {})
    found = Checked()
    if name not in files:
        found.faults.append(_unknown("model.model_type", name, files, f"types of model '{arch}'"))
        # What else is wrong is looked for as if another type had been named.
        name = next(iter(files), None)
    if settings := _settings_of(models[arch]):
        defaults = _section(_defaults(files.get(name)), "model")
        checked = check(settings, "model", model, known=known, defaults=defaults, what=f"Keys of model '{arch}'")
        found.faults += checked.faults
        found.notes += checked.notes
    return found


def _check_datasets(datasets: Mapping, known: Mapping[str, Any]) -> Checked:
    """What is wrong of all data sets; as values their ``count``, ``splits``, and whether one ``streams``."""
    builders = _registered("builder")
    found = Checked(values={"count": len(datasets)})
    splits: list[set[str] | None] = []
    for name, node in datasets.items():
        if name not in builders:
            found.faults.append(_unknown("datasets", name, builders, "data sets"))
            splits.append(None)
            continue
        checked = _check_dataset(name, node if isinstance(node, Mapping) else {}, builders[name], known)
        found.faults += checked.faults
        found.notes += checked.notes
        splits.append(checked.values.get("splits"))
    owners = [builders.get(name) for name in datasets]
    if all(_settings_of(owner) for owner in owners):
        found.values["streams"] = any(getattr(_settings_of(owner), "STREAMS", False) for owner in owners)
    if splits and None not in splits:
        found.values["splits"] = {split for each in splits for split in each or ()}
    return found


def _check_dataset(name: str, node: Mapping, builder: Any, known: Mapping[str, Any]) -> Checked:
    where, kind = f"datasets.{name}", node.get("type") or "default"
    files = getattr(builder, "DATASET_CONFIG_DICT", {})
    found = Checked()
    if kind not in files:
        found.faults.append(_unknown(f"{where}.type", kind, files, f"types of data set '{name}'"))
    defaults = _section(_section(_defaults(files.get(kind)), "datasets"), name)
    if settings := _settings_of(builder):
        checked = check(settings, where, node, known=known, defaults=defaults, what=f"Keys of data set '{name}'")
        found.faults += checked.faults
        found.notes += checked.notes
        if "build_info" in checked.values:
            found.values["splits"] = getattr(settings, "named_splits", lambda values: None)(checked.values)
    for key in ("vis_processor", "text_processor"):
        below, above = _section(defaults, key), _section(node, key)
        for phase in {**below, **above}:
            given = {**_section(below, phase), **_section(above, phase)}
            found.faults += _check_processor(f"{where}.{key}.{phase}", given, set(_section(above, phase)))
    return found


def _check_processor(where: str, node: Mapping, given: set[str]) -> Iterable[str]:
    """Faults of a processor, the data set's defaults among its values, where the user gave something of it."""
    processors = _registered("processor")
    if not given or "name" not in node:
        return
    name = node["name"]
    if name not in processors:
        yield _unknown(f"{where}.name", name, processors, "processors")
    elif settings := _settings_of(processors[name]):
        yield from check(settings, where, node, what=f"Keys of processor '{name}'").faults


def _check_run(run: Mapping, known: Mapping[str, Any]) -> Checked:
    """``run`` is shared by runner and task: keys are unknown only where both say what they read."""
    tasks, runners, schedules = _registered("task"), _registered("runner"), _registered("lr_scheduler")
    task, runner = run.get("task"), run.get("runner") or "runner_base"
    found = Checked()
    if task not in tasks:
        found.faults.append(_unknown("run.task", task, tasks, "tasks"))
    if runner not in runners:
        found.faults.append(_unknown("run.runner", runner, runners, "runners"))
    if run.get("lr_sched") is not None and run["lr_sched"] not in schedules:
        found.faults.append(_unknown("run.lr_sched", run["lr_sched"], schedules, "learning-rate schedules"))
    declared = [_settings_of(runners.get(runner)), _settings_of(tasks.get(task))]
    checked = check(
        [LaunchSettings, *(settings for settings in declared if settings)],
        "run",
        run,
        closed=all(declared),
        known=known,
        what="Keys of 'run' with this task and runner",
    )
    found.faults += checked.faults
    found.notes += checked.notes
    found.values |= checked.values
    return found


def _defaults(path: str | None) -> Mapping[str, Any]:
    """A file of defaults of a model type or data set; empty where there is none that can be read."""
    from lavis.common.utils import get_abs_path
    from omegaconf import OmegaConf

    file = Path(get_abs_path(path)) if path else None
    if file is None or not file.is_file():
        return {}
    try:
        return OmegaConf.to_container(OmegaConf.load(file), resolve=True)  # type: ignore[return-value]
    except _unreadable():
        return {}


def _unknown(where: str, given: Any, known: Iterable[str], what: str) -> str:
    """One error: what was given, the nearest name, and all that exist."""
    known = sorted(known)
    if given is None:
        return f"{where} is missing; {what} there are: {', '.join(known)}"
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{where} '{given}' is unknown.{hint} {what[0].upper()}{what[1:]} there are: {', '.join(known)}"
