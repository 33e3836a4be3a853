"""The documentation is true: links lead somewhere, snippets run, references are what the code says."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.docs.notebook import run_cells
from tests.docs.pages import (
    MADE_PAGES,
    MARK,
    PAGES,
    REPOSITORY,
    anchors,
    count_words,
    links,
    name_of,
    runnable_snippets,
)

RUNNABLE = [page for page in PAGES if runnable_snippets(page)]
LONG = {"docs/tutorial.md", "docs/questions.md"}
SLOW = (pytest.mark.slow, pytest.mark.timeout(1500))
PRELUDE = f'set -euo pipefail; gitllm() {{ "{sys.executable}" -W ignore -m gitllm_plugin "$@"; }}\n'


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue  # other hosts are not asked
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=SLOW if name_of(p) in LONG else (), id=name_of(p)) for p in RUNNABLE]
)
def test_snippets_run(page, tmp_path, monkeypatch):
    """All of a page one after another, in one folder, as a reader would."""
    monkeypatch.chdir(tmp_path)
    for number, snippet in enumerate(runnable_snippets(page)):
        if snippet.language == "python":
            path = tmp_path / f"snippet_{number}.py"
            path.write_text(snippet.code, encoding="utf-8")
            runpy.run_path(str(path), run_name="__main__")
        else:
            assert snippet.language == "bash", f"{snippet.language} cannot be run"
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            finished = subprocess.run(
                ["bash", "-c", PRELUDE + snippet.code], env=environment, capture_output=True, text=True, timeout=1200
            )
            assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_mark_is_known_by_heart():
    """A mark that no block follows would run nothing."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count(MARK + "\n```") == text.count(f"\n{MARK}"), name_of(page)


@pytest.mark.parametrize("page", ["configuration", "commands"])
def test_the_reference_is_what_the_code_says(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    reference = runpy.run_path(str(REPOSITORY / "docs" / "_build" / "reference.py"))
    written = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert written == reference[page](), "run: python docs/_build/reference.py"


@pytest.mark.parametrize("page", ["architecture", "rooms", "method"])
def test_what_a_page_says_stands_where_is_there(page):
    """`file.py` below the package, and `file.py:Name.method` in it."""
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    missing = []
    for path, name in re.findall(r"`((?:\w+/)*\w+\.py)(?::([\w.]+))?`", text):
        file = next((f for f in (REPOSITORY / "gitllm_plugin" / path, REPOSITORY / path) if f.is_file()), None)
        names = name.split(".") if name else []
        body = ast.parse(file.read_text(encoding="utf-8")).body if file else []
        while names and body is not None:
            wanted = names.pop(0)
            body = next((node.body for node in body if getattr(node, "name", None) == wanted), None)
        if file is None or body is None:
            missing.append(f"{path}:{name}")
    assert missing == []


def test_every_file_says_in_its_docstring_what_it_owns():
    made = runpy.run_path(str(REPOSITORY / "docs" / "_build" / "rooms.py"))
    page = made["page"]()
    assert made["PAGE"].read_text(encoding="utf-8") == page, "run: python docs/_build/rooms.py"
    files = {
        str(file.relative_to(REPOSITORY / "gitllm_plugin")) for file in (REPOSITORY / "gitllm_plugin").rglob("*.py")
    }
    assert files == set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)), "a file has no docstring"


@pytest.mark.parametrize("name", ["rooms", "model"])
def test_pictures_are_drawn_from_the_code(name):
    drawn = runpy.run_path(str(REPOSITORY / "docs" / "_build" / f"{name}.py"))
    assert drawn["DRAWING"].read_text(encoding="utf-8") == drawn["drawing"](), f"run: python docs/_build/{name}.py"


def test_every_family_is_in_the_table_of_models():
    from gitllm_plugin.modeling.families import FAMILIES

    page = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("| family |")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[2])]
    assert sorted(listed) == sorted(FAMILIES)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    pytest.importorskip("material", reason="the site needs the extra `docs`")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "site" / "configuration" / "index.html").is_file()
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "from_pretrained" in reference and ":class:" not in reference


def test_the_pages_stay_short():
    """All that people wrote in README and docs, beside the cards."""
    words = {name_of(page): count_words(page) for page in PAGES if page.parent.name != "cards"}
    written = {name: number for name, number in words.items() if name not in MADE_PAGES}
    assert written["README.md"] <= 500 and written["docs/first_hour.md"] <= 700
    assert sum(written.values()) <= 18_000, sorted(written.items(), key=lambda each: -each[1])[:8]


@pytest.mark.slow
def test_the_notebook_runs_and_says_what_it_printed(tmp_path):
    """Its models are random, so what it prints is the same each time."""
    path = REPOSITORY / "examples" / "first_steps.ipynb"
    printed = run_cells(path, tmp_path)
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    written = ["".join(text for output in cell["outputs"] for text in output["text"]) for cell in cells]
    assert printed == written, "run: python -m tests.docs.notebook examples/first_steps.ipynb"
