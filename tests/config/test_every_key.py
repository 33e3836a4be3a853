"""Every key that a registered class declares: wrong, out of bounds or misspelt, it is told before anything is built.

The cases follow from the declarations: a new key, of a class that is there or of a new one, is tested without a word.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from gitllm_plugin.config import describe
from gitllm_plugin.config.node import fields_of
from gitllm_plugin.config.run import RunSettings
from gitllm_plugin.config.values import fit
from tests.config.whole_files import DeclaredKey, declared_keys, faults_of, owners, whole_file, with_value, write_data

REPOSITORY = Path(__file__).parents[2]
KEYS = declared_keys()
_WRONG = ("no such value?", 12345.5, True, {"no": {"such": "value"}}, [["no"], {"such": "value"}])
_BEYOND = {
    "minimum": lambda bound: bound - 1,
    "exclusiveMinimum": lambda bound: bound,
    "maximum": lambda bound: bound + 1,
    "exclusiveMaximum": lambda bound: bound,
}
_NAMES = ("arch", "model_type", "type", "name", "task", "runner", "lr_sched")
"""Looked up in LAVIS's registry, so their faults read otherwise."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def is_node(key: DeclaredKey) -> bool:
    return any(other.path[: len(key.path)] == key.path and other.path != key.path for other in KEYS)


def wrong_values(key: DeclaredKey) -> list[Any]:
    """Values of other types, and numbers just beyond each bound."""
    if is_node(key):
        return [5]
    refused = [value for value in _WRONG if fit(key.hint, "", value)[1]]
    beyond = []
    schema = TypeAdapter(key.hint).json_schema()
    for member in schema.get("anyOf", [schema]):
        beyond += [beyond_(member[bound]) for bound, beyond_ in _BEYOND.items() if bound in member]
    return [*refused[:3], *(value for value in beyond if fit(key.hint, "", value)[1])]


CASES = [
    pytest.param(key, value, id=f"{key}={value!r}")
    for key in KEYS
    if key.path[-1] not in _NAMES
    for value in wrong_values(key)
]


def test_there_are_many_and_every_key_is_among_them():
    assert len(CASES) >= 61
    tried = {case.values[0] for case in CASES}
    untried = {str(key) for key in KEYS if key not in tried and key.path[-1] not in _NAMES}
    assert untried <= {"git_llm_visdial:build_info.annotations.train.url"}  # which nothing reads


@pytest.mark.parametrize("owner", owners(), ids=lambda owner: f"{owner.kind} {owner.name}")
def test_the_file_is_right_without_the_fault(owner, folder):
    assert faults_of(whole_file(owner, folder), folder / "right.yaml") == []


@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_wrong_value_is_told_with_what_is_allowed(key, value, folder):
    config = with_value(whole_file(key.owner, folder), key.path, value)
    faults = faults_of(config, folder / "wrong.yaml")
    where = ".".join(key.path)
    about = [fault for fault in faults if fault.startswith(where)]
    assert about and all(": unknown" in fault or "expected " in fault for fault in about), faults
    assert len(about) == len(faults), "one wrong value is one complaint"


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_misspelt_key_is_told_with_the_nearest(key, folder):
    *outer, name = key.path
    misspelt = f"{name[:-1]}{name[-1]}{name[-1]}x"
    config = with_value(whole_file(key.owner, folder), (*outer, misspelt), 1)
    faults = faults_of(config, folder / "misspelt.yaml")
    where = ".".join([*outer, misspelt])
    assert len(faults) == 1 and faults[0].startswith(f"{where}: unknown key '{misspelt}' (did you mean '{name}'?)")


@pytest.mark.parametrize("key", [key for key in KEYS if key.path[-1] not in _NAMES], ids=str)
def test_null_means_the_default(key, folder):
    """Where it does not, a rule says what is missing, and no type is complained of."""
    faults = faults_of(with_value(whole_file(key.owner, folder), key.path, None), folder / "null.yaml")
    assert not any("expected" in fault and "is missing" not in fault for fault in faults), faults


def test_every_registered_class_declares_what_it_reads_with_a_meaning():
    for owner in owners():
        assert all(key.meaning for key in describe(owner.settings)), owner
        assert list(fields_of(owner.settings)) == [key.name for key in describe(owner.settings)]


def test_every_key_of_the_run_is_read_by_the_package():
    """A key that is declared and not read would be taken without a word, and without effect."""
    declarations = REPOSITORY / "gitllm_plugin" / "config"
    sources = [path for path in (REPOSITORY / "gitllm_plugin").rglob("*.py") if declarations not in path.parents]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    unread = [key.name for key in describe(RunSettings) if not re.search(rf"\b{key.name}\b", code)]
    assert unread == []
