"""The import hook, in Pythons that process a site folder of ours at start, as they do site-packages."""

import os
from pathlib import Path

import pytest

from gitllm_plugin.host import import_hook

REPOSITORY = str(Path(__file__).resolve().parents[2])

SHOW = """
import importlib.util
import sys
assert importlib.util.find_spec("lavis"), "looking must not use the hook up"
assert "torch" not in sys.modules and "lavis" not in sys.modules, "start-up must stay cheap"
import lavis
from lavis.common.registry import registry
print("registered" if registry.get_runner_class("git_llm") else "plain LAVIS")
"""


@pytest.fixture
def python(run_python, tmp_path):
    """Runs a script in a plain Python whose site folder is `tmp_path / "site"`."""
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "start").mkdir()

    def run(script, at_start="", **env):
        (tmp_path / "script.py").write_text(script)
        (tmp_path / "start" / "sitecustomize.py").write_text(f"{at_start}\nimport site; site.addsitedir({str(site)!r})")
        path = os.pathsep.join([str(tmp_path / "start"), REPOSITORY])
        return run_python(args=["-W", "ignore", "script.py"], cwd=tmp_path, env={"PYTHONPATH": path, **env})

    run.site = site
    return run


def test_installing_and_removing_leave_one_file_and_none(tmp_path, monkeypatch):
    monkeypatch.delenv("GITLLM_HOOK", raising=False)
    assert not import_hook.status(tmp_path).installed
    for _ in range(2):
        assert import_hook.install(tmp_path).installed
        assert [path.name for path in tmp_path.iterdir()] == [import_hook.FILE_NAME]
    monkeypatch.setenv("GITLLM_HOOK", "0")
    assert import_hook.status(tmp_path).switched_off
    for _ in range(2):
        assert not import_hook.remove(tmp_path).installed
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(import_hook.HookError, match="nowhere.* cannot be written: .* Use an environment that you own"):
        import_hook.install(tmp_path / "nowhere")


def test_the_line_does_nothing_where_the_plugin_is_gone(run_python, tmp_path):
    finished = run_python(
        # -S: without site-packages, where the plugin may be installed for these tests.
        args=["-I", "-S", "-c", import_hook.LINE + "print(len([f for f in sys.meta_path if 'gitllm' in repr(f)]))"],
        cwd=tmp_path,
    )
    assert (finished.stdout.strip(), finished.stderr) == ("0", "")


def test_a_plain_script_finds_the_plugin(python):
    import_hook.install(python.site)
    finished = python(SHOW)
    assert finished.stdout.split("\n")[-2] == "registered", finished.stderr


def test_the_kill_switch(python):
    import_hook.install(python.site)
    script = "import sys; print([finder for finder in sys.meta_path if 'watcher of lavis' in repr(finder)])"
    assert "watcher of lavis" in python(script).stdout
    assert python(script, GITLLM_HOOK="0").stdout.strip() == "[]"


def test_a_failing_plugin_warns_and_lavis_goes_on(python):
    import_hook.install(python.site)
    broken = "import gitllm_plugin; gitllm_plugin.REGISTERED_MODULES = ('no_such_module',)"
    finished = python(SHOW, at_start=broken)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split("\n")[-2] == "plain LAVIS"
    assert "warning: gitllm_plugin could not be added to LAVIS" in finished.stderr
    assert "No module named 'no_such_module'" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_no_lavis_is_pythons_own_error(python):
    import_hook.install(python.site)
    hidden = (
        "from importlib.machinery import PathFinder; find = PathFinder.find_spec\n"
        "PathFinder.find_spec = classmethod(lambda c, n, *rest: None if n == 'lavis' else find(n, *rest))"
    )
    finished = python("import lavis", at_start=hidden)
    assert "ModuleNotFoundError: No module named 'lavis'" in finished.stderr
    assert "warning" not in finished.stderr
