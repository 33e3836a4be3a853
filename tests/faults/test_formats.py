"""Damaged files of every listed format: read, told or refused; nothing else comes of them."""

import re
from pathlib import Path

import pytest

from tests.faults.formats import FORMATS
from tests.faults.kit import Format, run


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_some_damaged_files(name):
    counts, findings = run(name, 100)
    assert not findings, "\n".join(f"seed {seed}: {kind}: {more}" for seed, kind, more in findings[:5])
    assert sum(counts.values()) == 100
    # Damage is seen, and not everything is refused out of caution.
    assert counts.get("told", 0) + counts.get("refused", 0) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_many_damaged_files(name):
    _, findings = run(name, 2_000 if name == "folder" else 8_000, seed=1_000)
    assert not findings, "\n".join(f"seed {seed}: {kind}: {more}" for seed, kind, more in findings[:5])


def test_every_format_has_its_figures_in_the_page():
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    listed = re.findall(r"^\| `(\w+)`: ", page, re.MULTILINE)
    assert len(listed) == len(set(listed))
    # The one for llama.cpp is tested where its engine is installed.
    assert set(listed) == {*FORMATS, "llama_cpp"}


def test_a_child_that_cannot_begin_is_told_at_once(monkeypatch):
    """The children, which import the formats for themselves, do not know this one."""
    monkeypatch.setitem(FORMATS, "a format of this test", Format(lambda folder: None, "*", lambda folder: ([], 0)))
    with pytest.raises(RuntimeError, match=r"(?s)did not begin: .*KeyError: 'a format of this test'"):
        run("a format of this test", 1_000)
