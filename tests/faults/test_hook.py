"""The import hook in Pythons whose plugin is gone, broken or another: Python starts, in silence or with one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gitllm_plugin.cli.main import main
from gitllm_plugin.host import import_hook

PACKAGE = Path(import_hook.__file__).parents[1]

# Lines that earlier versions wrote, which stay behind when the package is upgraded.
EARLIER = [
    r'import sys; exec("try:\n from gitllm_plugin.host.autoload import arm\nexcept ImportError: pass\nelse: arm()")'
    "\n"
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A bare Python of its own: its folder of packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder], check=True)
    (packages,) = folder.rglob("site-packages")
    return folder / "bin" / "python", packages


@pytest.fixture
def python(environment):
    """Runs code in it; the hook is installed, and no plugin."""
    executable, packages = environment
    for left in packages.iterdir():
        left.unlink() if left.is_symlink() or left.is_file() else shutil.rmtree(left)
    import_hook.install(packages)

    def run(*arguments, **variables):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GITLLM"))}
        return subprocess.run(
            [executable, *(arguments or ("-c", "print('started')"))],
            env={**kept, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.packages = packages
    return run


def write_package(packages: Path, files: dict[str, bytes | str]) -> None:
    """A package of the plugin's name."""
    for name in ("__init__.py", "host/__init__.py", *files):
        path = packages / "gitllm_plugin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = files.get(name, "")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def started(finished, lines: int) -> None:
    """Python did what it was asked, and said so many lines besides."""
    assert (finished.returncode, finished.stdout) == (0, "started\n"), finished.stderr
    assert len(finished.stderr.splitlines()) == lines, finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("line", [import_hook.LINE, *EARLIER])
def test_a_package_that_pip_removed_leaves_silence(python, line):
    (python.packages / import_hook.FILE_NAME).write_text(line)
    started(python(), lines=0)


def test_what_an_uninstallation_leaves_of_the_folder(python):
    (python.packages / "gitllm_plugin" / "__pycache__").mkdir(parents=True)
    (python.packages / "gitllm_plugin" / "configs").mkdir()
    started(python(), lines=1)


BROKEN = {
    "half a file": {"__init__.py": "def register(:\n"},
    "half the hook's file": {"host/autoload.py": "import os\nclass Watcher"},
    "another version, without the hook": {"host/other.py": ""},
    "another version, with another hook": {"host/autoload.py": "def watch(): pass\n"},
    "zeros": {"host/__init__.py": b"\0" * 64},
    "no text": {"__init__.py": b"\xff\xfe\x00caf\xe9"},
    "a name that is not there": {"host/__init__.py": "undefined\n"},
    "a library that is not there": {"__init__.py": "import torch_of_tomorrow\n"},
    "a failing hook": {"host/autoload.py": "def arm():\n    raise RuntimeError('of\\nseveral\\nlines')\n"},
    "an attribute that is not there": {"host/autoload.py": "import sys\ndef arm():\n    sys.no_such_attribute\n"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_one_line(python, name):
    write_package(python.packages, BROKEN[name])
    told = python()
    started(told, lines=1)
    assert import_hook.FILE_NAME in told.stderr and "gitllm hook install" in told.stderr
    started(python(GITLLM_HOOK="0"), lines=0)
    started(python("-S", "-c", "print('started')"), lines=0)


@pytest.mark.parametrize("line", [import_hook.LINE, *EARLIER])
def test_an_upgraded_package_goes_on(python, line):
    (python.packages / import_hook.FILE_NAME).write_text(line)
    (python.packages / "gitllm_plugin").symlink_to(PACKAGE)
    started(python(), lines=0)
    watching = python("-c", "import sys; print(*sys.meta_path)")
    assert watching.stdout.count("watcher of lavis") == 1 and watching.stderr == ""


@pytest.mark.parametrize("lacking", ["torch", "LAVIS's parts"])
def test_without_what_it_needs_the_import_of_lavis_goes_on(python, lacking):
    (python.packages / "gitllm_plugin").symlink_to(PACKAGE)
    (python.packages / "lavis").mkdir()
    (python.packages / "lavis" / "__init__.py").write_text("print('lavis')\n")
    if lacking != "torch":
        (python.packages / "torch.py").write_text("__version__ = '0'\n")
    finished = python("-c", "import lavis, lavis as again; print('started')")
    assert (finished.returncode, finished.stdout) == (0, "lavis\nstarted\n")
    assert len(finished.stderr.splitlines()) == 1 and "goes on without it" in finished.stderr


def test_a_hook_of_another_version_is_told_and_written_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / import_hook.FILE_NAME).write_text(EARLIER[0])
    assert main(["hook", "status"]) == 0
    assert "of another version" in capsys.readouterr().out
    assert main(["hook", "install"]) == 0
    assert "of another version" not in capsys.readouterr().out
    assert not import_hook.status().outdated


def test_a_full_disk_leaves_the_hook_that_was_there(tmp_path, monkeypatch):
    import_hook.install(tmp_path)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(import_hook.HookError, match="No space left"):
        import_hook.install(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [import_hook.FILE_NAME]
    assert import_hook.status(tmp_path).installed and not import_hook.status(tmp_path).outdated
