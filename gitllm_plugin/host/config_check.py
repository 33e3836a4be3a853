"""Check a configuration against LAVIS's registries before anything is built, all errors at once.

LAVIS answers an unknown name with None and an AttributeError far away, and ignores keys it does not know.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gitllm_plugin.config_keys import DATASET_KEYS, RUN_KEYS, as_assignments
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.resources import find_config

_SECTIONS = ("model", "datasets", "run")


def check_config(cfg_path: str | Path, options: Sequence[str] = (), evaluating: bool = False) -> None:
    """Check a configuration file and the options that override it. LAVIS must have been prepared.

    Checked: that the names of model, model type, task, runner, schedule, data sets, their types and
    processors exist, that classes which declare `CONFIG_KEYS` are given no other keys, that an evaluation
    is not given a training to resume, and that some data set has the splits that are named. Values (types, ranges,
    files) are checked by the classes that read them: `config_faults(node)` gives what is wrong with their node.

    Args:
        cfg_path: YAML file with the sections `model`, `datasets` and `run`.
        options: Overrides, each `key.subkey=value`.
        evaluating: Whether nothing is to be trained, as `run.evaluate` also says.

    Raises:
        ConfigError: One message with every error found.
    """
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(_load(find_config(cfg_path)), _parse_options(options))
    given = _resolved(merged, cfg_path)
    model, datasets, run = (_section(given, name) for name in _SECTIONS)
    evaluating = evaluating or run.get("evaluate") is True
    errors = [
        *_check_sections(given),
        *_check_model(model),
        *_check_datasets(datasets),
        *_check_run(run, evaluating),
        *_check_weights(run, evaluating),
        *_check_splits(run, datasets, evaluating),
        *_check_four_bits(model, run),
    ]
    if errors:
        listed = "\n".join(f"  - {error}" for error in errors)
        raise ConfigError(f"{cfg_path}: {len(errors)} error{'s' if len(errors) > 1 else ''}\n{listed}")


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
    """The configuration as plain dictionaries, interpolations (`${run.seed}`) replaced by their values."""
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


def _section(config: Any, name: str) -> Mapping:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _check_sections(config: Any) -> Iterable[str]:
    for name in _SECTIONS:
        if not isinstance(config.get(name), Mapping) or not config[name]:
            yield f"the section '{name}' is missing or not a mapping"
    yield from _unknown_keys("", config, {*_SECTIONS, "preprocess"}, "sections of a configuration")


def _registered(kind: str) -> Mapping[Any, Any]:
    """LAVIS's registry of one kind ("model", "task", ...): name -> class."""
    from lavis.common.registry import registry

    return registry.mapping[f"{kind}_name_mapping"]


def _check_model(model: Mapping) -> Iterable[str]:
    models = _registered("model")
    arch = model.get("arch")
    if not model:
        return
    if arch not in models:
        yield _unknown("model.arch", arch, models, "models")
        return
    types = getattr(models[arch], "PRETRAINED_MODEL_CONFIG_DICT", {})
    if model.get("model_type") not in types:
        yield _unknown("model.model_type", model.get("model_type"), types, f"types of model '{arch}'")
    yield from _check_keys("model", model, models[arch], {"arch", "model_type"}, f"keys of model '{arch}'")
    yield from _faults(models[arch], model)


def _check_datasets(datasets: Mapping) -> Iterable[str]:
    builders = _registered("builder")
    for name, node in datasets.items():
        where, node = f"datasets.{name}", node if isinstance(node, Mapping) else {}
        if name not in builders:
            yield _unknown("datasets", name, builders, "data sets")
            continue
        types = getattr(builders[name], "DATASET_CONFIG_DICT", {})
        if node.get("type", "default") not in types:
            yield _unknown(f"{where}.type", node.get("type", "default"), types, f"types of data set '{name}'")
        yield from _check_keys(where, node, builders[name], DATASET_KEYS, f"keys of data set '{name}'")
        yield from _faults(builders[name], node)
        for kind in ("vis_processor", "text_processor"):
            yield from _check_processors(f"{where}.{kind}", node.get(kind))


def _check_processors(where: str, node: Any) -> Iterable[str]:
    processors = _registered("processor")
    for phase, processor in (node if isinstance(node, Mapping) else {}).items():
        if not isinstance(processor, Mapping) or "name" not in processor:
            continue  # a part of the defaults, overridden
        name, here = processor["name"], f"{where}.{phase}"
        if name not in processors:
            yield _unknown(f"{here}.name", name, processors, "processors")
        else:
            yield from _check_keys(here, processor, processors[name], {"name"}, f"keys of processor '{name}'")


def _check_run(run: Mapping, evaluating: bool) -> Iterable[str]:
    if not run:
        return
    tasks, runners = _registered("task"), _registered("runner")
    task, runner = run.get("task"), run.get("runner", "runner_base")
    if task not in tasks:
        yield _unknown("run.task", task, tasks, "tasks")
    if runner not in runners:
        yield _unknown("run.runner", runner, runners, "runners")
    yield from _check_schedule(run)
    yield from _check_run_keys(run, tasks.get(task), runners.get(runner))
    yield from _faults(tasks.get(task), run)
    yield from _faults(runners.get(runner), {**run, "evaluate": True} if evaluating else run)


def _faults(owner: Any, node: Mapping) -> Iterable[str]:
    """What the class that reads a node finds wrong with its values."""
    return owner.config_faults(node) if hasattr(owner, "config_faults") else ()


def _check_weights(run: Mapping, evaluating: bool) -> Iterable[str]:
    """Runners read `run.resume_ckpt_path` in training only: other weights than those meant would be evaluated."""
    given = run.get("resume_ckpt_path")
    if given and evaluating:
        path = given if Path(str(given)).is_file() else "PATH"
        yield (
            f"run.resume_ckpt_path={given} continues a training and is not read in an evaluation; leave it out and "
            f"give the weights to evaluate with --options model.load_finetuned=True model.finetuned={path}"
        )


def _check_splits(run: Mapping, datasets: Mapping, evaluating: bool) -> Iterable[str]:
    """A split that no data set has files for would be found only when its turn comes.

    It is checked where every builder itself, not one that it is derived from, has `config_splits(node)`.
    """
    builders = _registered("builder")
    owners: dict[str, Any] = {name: builders.get(name) for name in datasets}
    if not owners or not all("config_splits" in vars(owner or object) for owner in owners.values()):
        return
    found = [owner.config_splits(_section(datasets, name)) for name, owner in owners.items()]
    known = sorted({split for splits in found for split in splits})
    keys = ("valid_splits", "test_splits") if evaluating else ("train_splits", "valid_splits", "test_splits")
    for key in keys:
        named = run.get(key)
        for split in named if isinstance(named, list) else ():
            if split not in known:
                yield f"run.{key} names {split!r}, but the data sets have files for: {', '.join(known) or 'none'}"


def _check_four_bits(model: Mapping, run: Mapping) -> Iterable[str]:
    if model.get("load_in_4bit") is not True:
        return
    if str(run.get("device")) == "cpu":
        yield "model.load_in_4bit needs a GPU, and run.device is cpu; use model.dtype=bfloat16 instead"
    if run.get("sharding") == "fsdp":
        yield "model.load_in_4bit and run.sharding=fsdp exclude each other: such weights cannot be spread over ranks"


def _check_schedule(run: Mapping) -> Iterable[str]:
    known = _registered("lr_scheduler")
    if "lr_sched" in run and run["lr_sched"] not in known:
        yield _unknown("run.lr_sched", run["lr_sched"], known, "learning-rate schedules")


def _check_run_keys(run: Mapping, task: Any, runner: Any) -> Iterable[str]:
    """`run` is shared by runner and task: it is checked where both say what they read."""
    if hasattr(task, "CONFIG_KEYS") and hasattr(runner, "CONFIG_KEYS"):
        allowed = task.CONFIG_KEYS | runner.CONFIG_KEYS | RUN_KEYS
        yield from _unknown_keys("run.", run, allowed, "keys of 'run' with this task and runner")


def _check_keys(where: str, node: Mapping, owner: Any, structural: Iterable[str], what: str):
    if hasattr(owner, "CONFIG_KEYS"):
        yield from _unknown_keys(f"{where}.", node, owner.CONFIG_KEYS | set(structural), what)


def _unknown_keys(prefix: str, node: Mapping, allowed: Collection[str], what: str) -> Iterable[str]:
    for key in node:
        if key not in allowed:
            yield _unknown("key", key, allowed, what, prefix)


def _unknown(where: str, given: Any, known: Iterable[str], what: str, prefix: str = "") -> str:
    """One error: what was given, the nearest name, and all that exist."""
    known = sorted(known)
    if given is None:
        return f"{where} is missing; {what} there are: {', '.join(known)}"
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f" Did you mean '{prefix}{near[0]}'?" if near else ""
    exist = f"{what[0].upper()}{what[1:]} there are: {', '.join(known)}"
    return f"{where} '{prefix}{given}' is unknown.{hint} {exist}"
