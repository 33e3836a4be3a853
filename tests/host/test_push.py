"""Uploading an exported folder, to a stand-in of the hub's functions."""

import huggingface_hub
import pytest

from gitllm_plugin.cli.main import main
from gitllm_plugin.errors import ConfigError
from gitllm_plugin.host import push
from gitllm_plugin.host.push import check_repository, push_folder


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub, in order."""
    asked = []

    def upload(repo_id, folder_path):
        asked.append(("upload", repo_id, folder_path))
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda name, **how: asked.append(("create", name, how)))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    return asked


def test_a_repository_is_made_private_and_filled(hub, tmp_path):
    assert push_folder(tmp_path, "ann/birds-2") == "https://hub/ann/birds-2"
    assert hub == [
        ("create", "ann/birds-2", {"private": True, "exist_ok": True}),
        ("upload", "ann/birds-2", str(tmp_path)),
    ]


@pytest.mark.parametrize("name", ["birds", "ann/birds/three", "ann/", "/birds", "ann/my birds", "../birds", ""])
def test_what_is_no_name_is_told_before_anything_is_sent(name, hub, tmp_path):
    with pytest.raises(ConfigError, match="no name on the model hub"):
        check_repository(name)
    with pytest.raises(ConfigError):
        push_folder(tmp_path, name)
    assert hub == []


@pytest.mark.parametrize(
    "error", [OSError("no route to host\nmore"), ValueError("401: no token"), Exception("a transport's own class")]
)
def test_a_refusal_says_that_the_folder_is_there(error, monkeypatch, tmp_path, hub):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "upload_folder", refuse)
    with pytest.raises(ConfigError, match=f"is written, but ann/birds .*{str(error).splitlines()[0]}.*hf upload"):
        push_folder(tmp_path, "ann/birds")


def test_the_command_uploads_what_it_wrote(monkeypatch, tmp_path, capsys, hub):
    monkeypatch.setattr("gitllm_plugin.host.export.export_run", lambda *args, **kwargs: None)
    assert main(["export", "run", str(tmp_path / "new"), "--push", "ann/birds"]) == 0
    assert [call[0] for call in hub] == ["create", "upload"]
    assert capsys.readouterr().out.splitlines()[-1] == "uploaded: https://hub/ann/birds"
    assert main(["export", "run", str(tmp_path / "new"), "--push", "birds"]) == 2
    assert len(hub) == 2 and push.check_repository("ann/birds") == "ann/birds"
