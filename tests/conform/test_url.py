"""Endpoints that give texts alone conform, and are caught where what they serve has a fault."""

import contextlib
import threading

import pytest

pytest.importorskip("fastapi", reason="pip install 'gitllm-plugin[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="pip install 'gitllm-plugin[serve]'")

from gitllm_plugin.conform import check  # noqa: E402
from gitllm_plugin.conform.engines.url import UrlEngine  # noqa: E402
from gitllm_plugin.errors import ConfigError  # noqa: E402
from tests.conform.faults import FAULTS, beams_not_reordered, caches_of_others  # noqa: E402


@contextlib.contextmanager
def served(pipeline):
    """Gives the address of an endpoint that answers from this process, where faults can be planted."""
    from gitllm_plugin.serving.api import make_app
    from gitllm_plugin.serving.messages import Limits

    config = uvicorn.Config(make_app(pipeline, "served", None, Limits()), port=0, log_level="error")
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    while not server.started:
        thread.join(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_an_endpoint_conforms(models, family):
    with served(models.pipeline(family)) as url:
        report = check(UrlEngine(url), models.reference(family))
    assert report.compared == "texts"
    assert report.conforms, str(report)
    assert [each.status for each in report.findings.values()].count("holds") >= 9, str(report)


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt_neox", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in (beams_not_reordered, caches_of_others)])
def test_a_fault_is_found_by_its_check(models, monkeypatch, fault, family):
    fault(monkeypatch)
    with served(models.pipeline(family)) as url:
        report = check(UrlEngine(url), models.reference(family))
    assert FAULTS[fault] in report.differing, str(report)


def test_nobody_there_is_told():
    with pytest.raises(ConfigError, match="is the server running"):
        UrlEngine("http://127.0.0.1:9")
