"""LAVIS is made importable before any test module here imports it; figures are drawn only where they are tested."""

import pytest

from gitllm_plugin.host.locate import prepare

prepare()


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Drawing takes longer than most runs here; the mark `figures` asks for it."""
    if "figures" not in request.keywords:
        monkeypatch.setattr("gitllm_plugin.runners.git_llm.draw_run", lambda folder: [])
