"""Where the packaged YAML files are found."""

import pytest

from gitllm_plugin import resources


def test_installed_package_holds_configs_itself_and_is_asked_first(tmp_path, monkeypatch):
    package = tmp_path / "gitllm_plugin"
    monkeypatch.setattr(resources, "files", lambda name: tmp_path / name)
    for folder in (tmp_path, package):
        (folder / "configs" / "x").mkdir(parents=True)
        (folder / "configs" / "x" / "a.yaml").touch()
        assert resources.config_path("x", "a.yaml") == str(folder / "configs" / "x" / "a.yaml")


def test_missing_file_names_both_places(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "files", lambda name: tmp_path / name)
    with pytest.raises(FileNotFoundError) as caught:
        resources.config_path("no.yaml")
    assert f"neither {tmp_path}/gitllm_plugin/configs/no.yaml nor {tmp_path}/configs/no.yaml" in str(caught.value)
