"""Every command in README and docs: it can be parsed, and it is run, or a reason says why not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gitllm_plugin.cli.main import build_parser
from tests.docs.commands import NOT_RUN, arguments, unmarked_lines, why_not_run
from tests.docs.pages import PAGES, REPOSITORY, name_of, runnable_snippets
from tests.docs.test_pages import PRELUDE

LINES = [(name_of(page), line) for page in PAGES for line in unmarked_lines(page)]
PARSED = [(page, line) for page, line in LINES if arguments(line) is not None]
RUN = [(page, line) for page, line in LINES if why_not_run(line) is None]
# What the commands of the pages call the run of a training, beside output/demo/train.
OTHER_NAMES = ("output/own_pictures", "output/my-run", "output/git_llm", "output/pictures/runs", "output/photos/runs")


@pytest.mark.parametrize(("page", "line"), PARSED)
def test_it_is_a_command(page, line):
    try:
        build_parser().parse_args(arguments(line))
    except SystemExit as ended:
        pytest.fail(f"{page}: {line}: status {ended.code}")


def test_there_is_no_reason_without_a_line():
    reasons = [why_not_run(line) for _, line in LINES]
    assert len(RUN) > 20 and set(NOT_RUN.values()) == set(reasons) - {None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The run of a tiny model, and what the pages call their files."""
    folder = tmp_path_factory.mktemp("commands")
    tutorial = REPOSITORY / "docs" / "tutorial.md"
    for number, snippet in enumerate(runnable_snippets(tutorial)):
        if snippet.language == "python":
            (folder / f"{number}.py").write_text(snippet.code, encoding="utf-8")
            subprocess.run([sys.executable, f"{number}.py"], cwd=folder, check=True)
        else:
            finished = run(snippet.code, folder)
            assert finished.returncode == 0, finished.stdout + finished.stderr
    trained = folder / "output" / "own_pictures"
    for name in ("output/demo/train", *OTHER_NAMES[1:]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(trained)
    configuration = yaml.safe_load((trained / "latest" / "config.yaml").read_text(encoding="utf-8"))
    weights = {"load_finetuned": True, "finetuned": str(trained / "latest" / "checkpoint_best.pth")}
    configuration["model"].update(weights)
    (folder / "my.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    import skimage

    photographs = Path(skimage.__file__).parent / "data"
    (folder / "pictures").mkdir()
    for name, given in (
        ("chelsea", "cat.jpg"),
        ("coffee", "shape.png"),
        ("horse", "pictures/horse.png"),
        ("coffee", "pictures/cup.png"),
    ):
        shutil.copy(photographs / f"{name}.png", folder / given)
    (folder / "pictures" / "horse.txt").write_text("A horse.", encoding="utf-8")
    (folder / "pictures" / "cup.txt").write_text("A cup.", encoding="utf-8")
    (folder / "data" / "test").mkdir()
    shutil.copy(folder / "data" / "stamps" / "test.jsonl", folder / "data" / "test" / "test.jsonl")
    (folder / "rows.jsonl").write_text('{"image": "cat.jpg", "question": "what is it?"}\n', encoding="utf-8")
    return folder


def run(code, folder):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        ["bash", "-c", PRELUDE + code], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("page", "line"), RUN)
def test_it_runs(page, line, workspace):
    """In the order of the pages, as later lines read what earlier ones wrote; each can be run alone too."""
    targets = [word for word in line.split() if word in ("my-adapter", "my-merged-model")]
    if "export" in line and " my-model" in line:
        targets.append("my-model")
    for target in targets:
        shutil.rmtree(workspace / target, ignore_errors=True)
    finished = run(line, workspace)
    # `doctor` says 1 where something that is optional is not there.
    assert finished.returncode == 0 or "gitllm doctor" in line, finished.stdout + finished.stderr
