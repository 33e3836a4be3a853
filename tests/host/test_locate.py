"""Finding LAVIS, and what is said where it or a library of its own is missing."""

import pytest

from gitllm_plugin.errors import HostError
from gitllm_plugin.host import locate


def test_the_release_is_found_without_importing_it(run_python):
    finished = run_python(
        "from gitllm_plugin.host.locate import locate; import sys; host = locate();"
        "print(host.variant, host.version, 'lavis' in sys.modules, 'torch' in sys.modules)"
    )
    assert finished.stdout.split() == ["1.0.2", "1.0.2", "False", "False"], finished.stderr


def test_no_lavis(run_python):
    finished = run_python(
        "from gitllm_plugin.cli.main import main; raise SystemExit(main(['train', '--cfg-path', 'x.yaml']))",
        hidden=["lavis"],
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: LAVIS is not installed")
    assert locate.INSTALL_COMMAND in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_folder_that_is_not_lavis(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "_package_folder", lambda: tmp_path / "lavis")
    with pytest.raises(HostError, match="which is not LAVIS"):
        locate.locate()


def test_git_main_is_told_by_the_modules_it_has(tmp_path, monkeypatch):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "registry.py").touch()
    (tmp_path / "models" / "blip_diffusion_models").mkdir(parents=True)
    monkeypatch.setattr(locate, "_package_folder", lambda: tmp_path)
    host = locate.locate()
    assert (host.variant, host.version) == ("git main", None)


def test_missing_libraries_are_named_together_with_the_command(run_python):
    finished = run_python("from gitllm_plugin.host.locate import prepare; prepare()", hidden=["iopath", "yaml"])
    assert "HostError: LAVIS needs iopath, yaml" in finished.stderr
    assert "pip install iopath pyyaml" in finished.stderr
