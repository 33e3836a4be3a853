"""The wheel, built as it would be published, in an environment of its own, away from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.small_run import write_small_run

REPOSITORY = Path(__file__).resolve().parents[2]
BUILT_FROM = ("gitllm_plugin", "configs", "projects", "setup.py", "pyproject.toml", "README.md", "LICENSE")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command, **kwargs):
    """What a command prints; an error shows all of it."""
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, **kwargs)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves folders behind, and would put stale files of earlier builds in."""
    copy = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    run(sys.executable, "-m", "build", "--outdir", copy / "dist", copy)
    assert len(list((copy / "dist").glob("*.tar.gz"))) == 1
    (path,) = (copy / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `gitllm` of a fresh environment; the libraries are those of this one, so that none is fetched again."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "-q", wheel)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries_of_the_tests.pth").write_text("\n".join(libraries) + "\n")
    return folder / "bin" / "gitllm"


@pytest.fixture
def away(tmp_path):
    """Keyword arguments of a process that knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GITLLM_CACHE")}
    return {"cwd": tmp_path, "env": environment}


def test_what_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"gitllm_plugin/py.typed", "gitllm_plugin/configs/models/git_llm/opt_350m.yaml"} <= names
    for folder in ("configs", "projects"):
        ours = {f"gitllm_plugin/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / folder).rglob("*.yaml")}
        assert ours and ours <= names
    sources = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "gitllm_plugin").rglob("*.py")}
    assert sources <= names
    others = {name.split("/")[0] for name in names} - {"gitllm_plugin"}
    assert len(others) == 1 and others.pop().endswith(".dist-info")
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "License-Expression: BSD-3-Clause" in metadata and "Provides-Extra: host" in metadata


def test_it_is_the_installed_package_that_runs(installed, away):
    python = installed.parent / "python"
    where = run(python, "-c", "import gitllm_plugin; print(gitllm_plugin.__file__)", **away)
    assert Path(where.strip()).is_relative_to(installed.parents[1])
    assert "registered with LAVIS  yes" in run(installed, "doctor", **away)


def test_the_packages_own_configurations_are_found(installed, away):
    commands = run(installed, "experiment", "projects/git_llm/experiments/demo_exp1.yaml", "--dry-run", **away)
    assert "projects/git_llm/train/demo_experiment.yaml" in commands


def test_training_export_and_words(installed, away, tmp_path):
    config = write_small_run(tmp_path, max_epoch=1)
    run(installed, "train", "--cfg-path", config, **away)
    run(installed, "export", tmp_path / "output" / "latest", tmp_path / "model", **away)
    printed = run(installed, "words", "--images", tmp_path / "test.jsonl", "--model", tmp_path / "model", **away)
    cells = [line.split() for line in printed.splitlines()]
    assert ["pictures", "7"] in cells and ["image", "vectors", "112"] in cells
