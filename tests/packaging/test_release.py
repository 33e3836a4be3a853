"""What stands around the code says the same version, links to files that are there, and can be read."""

import re
from pathlib import Path

import pytest
import yaml

from gitllm_plugin import __version__
from tests.docs.pages import REPOSITORY, links
from tests.environments import OLDEST

PAGES = ("CONTRIBUTING.md", "SECURITY.md")


def test_one_version_is_released():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) \((\S+)\)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert (newest[1], newest[2]) == (citation["version"], str(citation["date-released"]))
    assert citation["version"] == __version__


def test_a_citation_has_what_is_cited_by():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    for reference in citation["references"]:
        assert reference["authors"] and re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", reference["url"])


@pytest.mark.parametrize("page", PAGES)
def test_pages_link_to_what_is_there(page):
    found = links(REPOSITORY / page)
    missing = [link for link in found if "://" not in link and not (REPOSITORY / link.partition("#")[0]).exists()]
    assert not missing


def test_commands_of_contributing_are_there():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", text)) <= targets
    assert all((REPOSITORY / folder).is_dir() for folder in re.findall(r"\btests/\w+", text))


@pytest.mark.parametrize(
    "form", sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_forms_of_issues_can_be_read(form: Path):
    content = yaml.safe_load(form.read_text())
    if form.stem != "config":
        assert {"name", "description", "body"} <= content.keys()
        assert all(part["type"] in ("textarea", "input") and part["attributes"]["label"] for part in content["body"])


def test_the_oldest_versions_that_are_tried_are_the_bounds():
    bounds = dict(
        re.findall(r'"([\w-]+)>=([\d.]+)",\n', (REPOSITORY / "setup.py").read_text().split("extras_require")[0])
    )
    assert bounds.keys() == OLDEST.keys()
    for package, bound in bounds.items():
        assert OLDEST[package].startswith(bound), package
