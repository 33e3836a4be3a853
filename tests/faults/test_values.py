"""Every declared key with values that no key, or not this one, may hold: one error that names the key, or a value that
its declaration allows by rules that are written here a second time, from its type alone."""

import subprocess
import sys
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

import pytest
import yaml

from gitllm_plugin.config import Says, read
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host.config_check import check_config
from tests.config.whole_files import DeclaredKey, declared_keys, faults_of, whole_file, with_value, write_data
from tests.small_run import ENVIRONMENT, write_small_run

NAN, INFINITY = float("nan"), float("inf")
_NEVER = (NAN, INFINITY, -INFINITY, [NAN], {"train": NAN}, 10**30, -(10**30), 1e300, "a\0b", [[[]]], b"\xff\0")
"""No key takes them, whatever its type."""
_SOMETIMES = (
    None,
    -1,
    0,
    -0.5,
    2.5,
    True,
    False,
    [],
    {},
    "no such thing",
    "-1",
    ["a", 1],
    {"a": {"b": None}},
    "x" * 9999,
)
_FAST = (NAN, -INFINITY, 10**30, "a\0b", None, -1, True, [], {}, "no such thing", "x" * 9999)
_TAKES_ANYTHING = {"url"}
"""Keys that nothing reads."""
_FROM_REGISTRY = ("arch", "model_type", "type", "name", "task", "runner", "lr_sched")

KEYS = [key for key in declared_keys() if key.path[-1] not in _TAKES_ANYTHING]


def first_of_each_kind() -> list[DeclaredKey]:
    """One key of each name and type: processors of pictures and of videos read many of the same."""
    return list({(key.path[-1], str(key.hint)): key for key in KEYS}.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def members(hint: Any) -> list[tuple[Any, list[Any]]]:
    """The alternatives of a type, each with the bounds that are annotated on it."""
    if typing.get_origin(hint) is Annotated:
        inner, *data = typing.get_args(hint)
        bounds = [each for one in data for each in getattr(one, "metadata", [one])]
        return [(kind, [*bounds, *more]) for kind, more in members(inner)]
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return [member for each in typing.get_args(hint) for member in members(each)]
    return [(hint, [])]


def allows(hint: Any, value: Any) -> bool:
    """Whether a declaration allows a value, as far as types and bounds say."""
    if value is None:
        return True  # the default
    if isinstance(value, str):
        number = value.lstrip("-").isdigit()
        return any(
            kind is str or typing.get_origin(kind) is Literal or (number and kind in (int, float))
            for kind, _ in members(hint)
        )
    for kind, bounds in members(hint):
        origin = typing.get_origin(kind) or kind
        if isinstance(value, (list, dict)):
            if origin is (tuple if isinstance(value, list) else dict) or hasattr(kind, "WHERE"):
                return True
        elif isinstance(value, bool) or kind is bool:
            if isinstance(value, bool) and kind is bool:
                return True
        elif kind is float or (kind is int and value == int(value)):
            kept = [
                (getattr(each, "ge", None) is None or value >= each.ge)
                and (getattr(each, "gt", None) is None or value > each.gt)
                and (getattr(each, "le", None) is None or value <= each.le)
                and (getattr(each, "lt", None) is None or value < each.lt)
                for each in bounds
                if not isinstance(each, Says)
            ]
            if all(kept):
                return True
    return False


def check_value(key: DeclaredKey, value: Any, folder: Path) -> None:
    faults = faults_of(with_value(whole_file(key.owner, folder), key.path, value), folder / "bad.yaml")
    if not faults:
        assert not any(value is each or value == each for each in _NEVER), "no key takes this"
        assert key.path[-1] in _FROM_REGISTRY or allows(key.hint, value)
        return
    where, name = ".".join(key.path), key.path[-1]
    # What is missing where nothing is given is told by an example that has the key, or by what lacks it.
    named = [fault for fault in faults if where in fault or (value in (None, "", {}, []) and name in fault)]
    assert (
        named
        or f"data set {key.path[1]} " in faults[0]
        or any(
            words in faults[0] for words in ("data sets have files for: none", "UNTRAINED weights would be evaluated")
        )
    ), faults
    assert all(len(fault) < 2500 for fault in faults)


@pytest.mark.parametrize(("number", "key"), list(enumerate(first_of_each_kind())), ids=str)
def test_bad_values_are_told_or_allowed(number, key, folder):
    for each in range(3):  # each value meets a quarter of the keys; the slow test tries all
        check_value(key, _FAST[(3 * number + each) % len(_FAST)], folder)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_all_bad_values_are_told_or_allowed(key, folder):
    for value in (*_NEVER, *_SOMETIMES):
        check_value(key, value, folder)


CROSSED = [
    (["run.min_len=40", "run.max_len=3"], "run.min_len is 40, more than max_len, which is 3"),
    (["run.min_lr=2", "run.init_lr=1"], "run.min_lr is 2, above run.init_lr, which is 1"),
    (
        ["run.lr_sched=linear_warmup_cosine_lr", "run.warmup_lr=-0.5"],
        "run.warmup_lr is -0.5, expected 0 or more, or -1",
    ),
    (["run.train_splits=[]"], "run.train_splits is empty"),
    (["model.trainable=[]"], "model.trainable is an empty list"),
    (["datasets.m3it.vis_processor.train.mean=[0.1,0.1,0.1]"], ".mean is [0.1, 0.1, 0.1] and std is []"),
    (
        ["datasets.m3it.vis_processor.train={mean: [0.1,0.1,0.1], std: [0,0,0]}"],
        "std is [0.0, 0.0, 0.0], expected three numbers each, std above 0",
    ),
    (["datasets.m3it.vis_processor.train.random_resized_crop=[0.9,0.1]"], "the least and greatest part of the area"),
    (["run.agg_metric=loss", "run.valid_loss=false"], "run.agg_metric is 'loss', but computed are: exact_match"),
]


@pytest.mark.parametrize(("options", "expected"), CROSSED, ids=lambda value: str(value)[:50])
def test_what_does_not_go_together_is_told(tmp_path, options, expected):
    with pytest.raises(ConfigError) as raised:
        check_config(write_small_run(tmp_path), options)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    "given", [{"seed": 10**5000}, {"init_lr": 10**400}, {"output_dir": "\ud800"}, {"best": {1, 2}}]
)
def test_what_only_python_can_give(given):
    with pytest.raises(ConfigError, match=f"^run.{next(iter(given))} is "):
        read(RunSettings, "run", given)


BEFORE_ANYTHING = ("run.max_grad_norm=.nan", "run.init_lr=.inf", "model.lr_scale={proj: -1}", "run.num_workers=100000")


@pytest.mark.parametrize("words", [["train", "--dry-run"], ["evaluate"]], ids=" ".join)
def test_the_commands_end_in_one_error(tmp_path, words):
    """With all faults in it, and nothing written."""
    path = write_small_run(tmp_path)
    before = sorted(tmp_path.iterdir())
    arguments = [*words, "--cfg-path", str(path), "--options", *BEFORE_ANYTHING]
    done = subprocess.run([sys.executable, "-m", "gitllm_plugin", *arguments], env=ENVIRONMENT, capture_output=True)
    said = done.stderr.decode()
    assert done.returncode == 2 and "Traceback" not in said
    assert f"error: {path}: " in said
    for option in BEFORE_ANYTHING:
        assert f"- {option.partition('=')[0]}" in said
    assert sorted(tmp_path.iterdir()) == before


def null_keys() -> list[str]:
    owners = ("git_llm", "m3it")
    return [
        ".".join(key.path)
        for key in KEYS
        if key.owner.name in owners
        and key.owner.kind in ("runner", "task", "model", "builder")
        and key.path[-1] != "runner"  # null is LAVIS's own
    ]


@pytest.mark.slow
@pytest.mark.parametrize("key", null_keys())
def test_null_in_any_key_trains_as_its_default_or_is_told(tmp_path, key):
    from gitllm_plugin.host import launch

    path = write_small_run(tmp_path, max_epoch=1)
    config = yaml.safe_load(path.read_text())
    with_value(config, tuple(key.split(".")), None)
    path.write_text(yaml.safe_dump(config))
    before = {*tmp_path.iterdir()}
    try:
        check_config(path)
    except ConfigError as error:
        assert key.rpartition(".")[2] in str(error) or key.startswith("datasets")
        assert {*tmp_path.iterdir()} == before
        return
    launch.dry_run(path, [f"run.output_dir={tmp_path}/output"] if key != "run.output_dir" else [])
