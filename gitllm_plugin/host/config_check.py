"""Check a configuration before anything is built, all errors at once.

LAVIS answers an unknown name with None and an AttributeError far away, and ignores keys it does not know.
"""

import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.common.run_files import weights_of_own_config
from gitllm_plugin.config import Checked, check, cut_long_words, nearest, shown, unknown_key
from gitllm_plugin.config.options import as_assignments
from gitllm_plugin.config.run import LaunchSettings
from gitllm_plugin.datasets.settings import DataSetSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.config_file import holds_a_mapping, load_config, resolve, unreadable, why
from gitllm_plugin.host.data_addresses import where_from
from gitllm_plugin.host.run_keys import check_keys_of_lavis
from gitllm_plugin.resources import find_config
from gitllm_plugin.secret_values import hide_secrets

_SECTIONS = ("model", "datasets", "run")
_PROCESSORS = ("vis_processor", "text_processor")


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

    config = load_config(find_config(cfg_path))
    try:
        merged = OmegaConf.merge(config, _parse_options(options))
    except TypeError as error:
        raise ConfigError(_why_not_merged(config, as_assignments(options))) from error
    given = resolve(merged, cfg_path)
    own = weights_of_own_config(cfg_path, options)
    found = _check(given, evaluating, {"run.own_weights": own is not None})
    if found.faults:
        count = len(found.faults)
        hints = [where_from(str(fault)) for fault in found.faults]
        lines = [
            f"  - {fault}" + (f"\n    {hint}" if hint else "") for fault, hint in zip(found.faults, hints, strict=True)
        ]
        listed = "\n".join(lines)
        raise ConfigError(f"{cfg_path}: {count} error{'s' if count > 1 else ''}\n{listed}")
    if os.environ.get("RANK", "0") == "0":  # torchrun's: every process checks, and one tells
        for note in found.notes:
            _tell(f"{cfg_path}: {note}")


def _check(given: Mapping[str, Any], evaluating: bool, besides: Mapping[str, Any]) -> Checked:
    """Find what is wrong, in the order of the sections; ``besides`` is what rules may ask of the file itself."""
    model, datasets, run = (_section(given, name) for name in _SECTIONS)
    training = not (evaluating or run.get("evaluate") is True)
    known: dict[str, Any] = {"run.training": training, **besides, **_machine()}
    # Each of these may be asked for by the rules of the next.
    of_datasets = _check_datasets(datasets, known)
    known |= {f"datasets.{key}": value for key, value in of_datasets.values.items()}
    of_run = _check_run(run, known) if run else Checked()
    known |= {f"run.{key}": value for key, value in of_run.values.items()}
    of_model = _check_model(model, known) if model else Checked()
    of_model.faults += _check_tiles(model, datasets)
    sections = Checked(faults=[*_check_sections(given)])
    parts = (sections, of_model, of_datasets, of_run)
    return Checked(
        faults=[fault for part in parts for fault in part.faults],
        notes=[note for part in parts for note in part.notes],
    )


@functools.cache
def _tell(note: str) -> None:
    """Warn, once: a dry run checks its configuration twice."""
    logging.warning("%s", hide_secrets(note))


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
        for option in options:
            holds_a_mapping(option.partition("=")[2])
        return OmegaConf.from_dotlist(options)
    except ConfigError as error:
        raise ConfigError(f"--options {cut_long_words(' '.join(options))}: {error}") from error
    except unreadable() as error:
        raise ConfigError(f"--options {cut_long_words(' '.join(options))}: {why(error)}") from error


def _why_not_merged(config: Any, options: Sequence[str]) -> str:
    """Find the option that puts a list on a mapping, or the item of a list, which OmegaConf takes for a key."""
    from omegaconf import OmegaConf

    for option in options:
        key, _, value = option.partition("=")
        for end in re.finditer(r"[.\[]", key):
            outer = key[: end.start()]
            if OmegaConf.is_list(OmegaConf.select(config, outer)):
                return f"--options {option}: {outer} is a list; write it whole, as in {outer}=[{value}]"
        held = OmegaConf.select(config, key)
        given = OmegaConf.select(_parse_options([option]), key)
        if OmegaConf.is_config(held) and OmegaConf.is_config(given) and type(held) is not type(given):
            kind = "list" if OmegaConf.is_list(held) else "mapping"
            return f"--options {option}: {key} is a {kind} in the file, and only a {kind} may take its place"
    return f"--options {' '.join(options)}: a list and a mapping cannot be merged"


def _machine() -> dict[str, Any]:
    """Say what rules may ask of this machine: whether it has a GPU, and that files may be looked for."""
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
    """Look up LAVIS's registry of one kind ("model", "task", ...): name -> class."""
    from lavis.common.registry import registry

    return registry.mapping[f"{kind}_name_mapping"]


def _settings_of(owner: Any) -> type | None:
    """Find what a registered class declares that it reads; None for LAVIS's own."""
    return getattr(owner, "Settings", None)


def _of_data_set(builder: Any) -> type[DataSetSettings]:
    """Find what a builder's declaration says of its data; of one that is no :class:`DataSetSettings` nothing."""
    settings = _settings_of(builder)
    return settings if settings is not None and issubclass(settings, DataSetSettings) else DataSetSettings


def _check_model(model: Mapping, known: Mapping[str, Any]) -> Checked:
    models = _registered("model")
    arch, name = model.get("arch"), model.get("model_type")
    if not _is_among(arch, models):
        return Checked(faults=[_unknown("model.arch", arch, models, "models")])
    files = getattr(models[arch], "PRETRAINED_MODEL_CONFIG_DICT", {})
    found = Checked()
    if not _is_among(name, files):
        found.faults.append(_unknown("model.model_type", name, files, f"types of model '{arch}'"))
        # What else is wrong is looked for as if another type had been named.
        name = next(iter(files), None)
    if settings := _settings_of(models[arch]):
        defaults = _section(_defaults(files.get(name)), "model")
        checked = check(settings, "model", model, known=known, defaults=defaults, what=f"Keys of model '{arch}'")
        # A name that is not even a text was complained of above.
        found.faults += _but_of(("model.model_type",), checked.faults)
        found.notes += checked.notes
    return found


def _check_tiles(model: Mapping, datasets: Mapping) -> Iterable[str]:
    """Refuse pictures in tiles where another model than git_llm is to read them."""
    for name, node in datasets.items():
        for phase, pictures in _section(node, "vis_processor").items() if isinstance(node, Mapping) else ():
            tiles = pictures.get("max_tiles") if isinstance(pictures, Mapping) else None
            if isinstance(tiles, int) and tiles > 1 and model.get("arch") != "git_llm":
                yield (
                    f"datasets.{name}.vis_processor.{phase}.max_tiles is {tiles}, but model.arch is "
                    f"{model.get('arch')!r}: pictures in tiles are read by git_llm alone; leave max_tiles out"
                )


def _check_datasets(datasets: Mapping, known: Mapping[str, Any]) -> Checked:
    """Check all data sets; the values are their ``count``, ``names``, ``splits``, and whether one ``streams``."""
    builders = _registered("builder")
    found = Checked(values={"count": len(datasets), "names": tuple(datasets)})
    splits: list[set[str] | None] = []
    for name, node in datasets.items():
        if name not in builders:
            found.faults.append(_unknown("datasets", name, builders, "data sets"))
            splits.append(None)
            continue
        if not isinstance(node, Mapping):
            said = "null" if node is None else shown(node)
            found.faults.append(f"datasets.{name} is {said}, expected a mapping, {{}} for the defaults")
            splits.append(None)
            continue
        checked = _check_dataset(name, node, builders[name], known)
        found.faults += checked.faults
        found.notes += checked.notes
        splits.append(checked.values.get("splits"))
    owners = [builders.get(name) for name in datasets]
    if all(_settings_of(owner) for owner in owners):
        found.values["streams"] = any(_of_data_set(owner).STREAMS for owner in owners)
    if splits and None not in splits:
        found.values["splits"] = {split for each in splits for split in each or ()}
    return found


def _check_dataset(name: str, node: Mapping, builder: Any, known: Mapping[str, Any]) -> Checked:
    # LAVIS looks null up too, and knows no type of that name.
    where, kind = f"datasets.{name}", node.get("type", "default")
    files = getattr(builder, "DATASET_CONFIG_DICT", {})
    found = Checked()
    if not _is_among(kind, files):
        found.faults.append(_unknown(f"{where}.type", kind, files, f"types of data set '{name}'"))
        kind = None
    defaults = _section(_section(_defaults(files.get(kind)), "datasets"), name)
    settings = _settings_of(builder)
    # What LAVIS reads of any, where a class declares nothing.
    checked = check(
        settings or DataSetSettings,
        where,
        node,
        closed=settings is not None,
        known=known,
        # Those of LAVIS's own are not ours to judge.
        defaults=defaults if settings else {},
        what=f"Keys of data set '{name}'",
    )
    found.faults += _but_of((f"{where}.type",), checked.faults)
    found.notes += checked.notes
    if "build_info" in checked.values:
        found.values["splits"] = _of_data_set(builder).named_splits(checked.values)
    for key in _PROCESSORS:
        if settings and key in node and node[key] is None:
            found.faults.append(f"{where}.{key} is null, and nothing makes batches without; leave it out")
        below, above = _section(defaults, key), _section(node, key)
        for phase in {**below, **above}:
            given = {**_section(below, phase), **_section(above, phase)}
            found.faults += _check_processor(f"{where}.{key}.{phase}", key, given, set(_section(above, phase)))
    return found


def _check_processor(where: str, kind: str, node: Mapping, given: set[str]) -> Iterable[str]:
    """Check a processor, the data set's defaults among its values, where a user gave something of it."""
    processors = _registered("processor")
    if not given or "name" not in node:
        return
    name = node["name"]
    if not _is_among(name, processors):
        yield _unknown(f"{where}.name", name, processors, "processors")
        return
    settings = _settings_of(processors[name])
    if settings is None:
        return
    # What other classes declare may stand anywhere.
    own = getattr(settings, "WHERE", None)
    if own in _PROCESSORS and own != kind:
        same = [each for each in processors if getattr(_settings_of(processors[each]), "WHERE", None) == kind]
        yield f"{where}.name '{name}' is made for {own}; for {kind} there are: {', '.join(sorted(same))}"
    else:
        yield from check(settings, where, node, what=f"Keys of processor '{name}'").faults


def _check_run(run: Mapping, known: Mapping[str, Any]) -> Checked:
    """Check what runner and task share: keys are unknown only where both say what they read."""
    tasks, runners, schedules = _registered("task"), _registered("runner"), _registered("lr_scheduler")
    task, runner = run.get("task"), run.get("runner")
    runner = "runner_base" if runner is None else runner
    found = Checked()
    if not _is_among(task, tasks):
        found.faults.append(_unknown("run.task", task, tasks, "tasks"))
    if not _is_among(runner, runners):
        found.faults.append(_unknown("run.runner", runner, runners, "runners"))
    if run.get("lr_sched") is not None and not _is_among(run["lr_sched"], schedules):
        found.faults.append(_unknown("run.lr_sched", run["lr_sched"], schedules, "learning-rate schedules"))
    declared = [_settings_of(owners.get(_nearest(name, owners))) for name, owners in ((runner, runners), (task, tasks))]
    checked = check(
        [LaunchSettings, *(settings for settings in declared if settings)],
        "run",
        run,
        closed=all(declared),
        known=known,
        what="Keys of 'run' with this task and runner",
    )
    found.faults += _but_of(("run.task", "run.runner", "run.lr_sched"), checked.faults)
    found.notes += checked.notes
    found.values |= checked.values
    owner = runners.get(runner) if isinstance(runner, str) else None
    if owner is not None and owner.__module__.startswith("lavis."):
        training = bool(known.get("run.training"))
        of_lavis = check_keys_of_lavis(run, runner, [each for each in declared if each], training)
        found.faults += of_lavis.faults
        found.notes += of_lavis.notes
    return found


def _defaults(path: str | None) -> Mapping[str, Any]:
    """Read a file of defaults of a model type or data set; empty where there is none that can be read."""
    from lavis.common.utils import get_abs_path
    from omegaconf import OmegaConf

    file = Path(get_abs_path(path)) if path else None
    if file is None or not file.is_file():
        return {}
    try:
        return OmegaConf.to_container(OmegaConf.load(file), resolve=True)  # type: ignore[return-value]
    except unreadable():
        return {}


def _is_among(name: Any, known: Iterable[str]) -> bool:
    """Tell whether a name is registered: a list or a mapping in its place is none, and cannot be looked up."""
    return isinstance(name, str) and name in known


def _nearest(name: Any, known: Iterable[str]) -> str | None:
    """Find the name that was meant, so that a slip in it hides no other fault; None where none is near."""
    if _is_among(name, known):
        return name
    return nearest(name, known)


def _but_of(places: Sequence[str], faults: Iterable[str]) -> list[str]:
    """Leave out what types say of names that :func:`_unknown` speaks of."""
    return [fault for fault in faults if not fault.startswith(tuple(f"{place} is " for place in places))]


def _unknown(where: str, given: Any, known: Iterable[str], what: str) -> str:
    """Say that a name is not registered, with the nearest and all that are."""
    known = sorted(known)
    if given is None:
        return f"{where} is missing; {what} there are: {', '.join(known)}"
    near = nearest(given, known)
    hint = f" Did you mean '{near}'?" if near else ""
    said = f"{where} '{given}' is unknown.{hint} {what[0].upper()}{what[1:]} there are: {', '.join(known)}"
    return cut_long_words(said)
