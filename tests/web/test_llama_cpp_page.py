"""`gitllm demo` with a folder for llama.cpp: the same page, without figures, which says why."""

# ruff: noqa: E402

import io
import json
import re

import pytest
import torch
from PIL import Image

for package in ("gradio", "gguf", "onnx", "onnxscript", "onnxruntime", "xllamacpp"):
    pytest.importorskip(package, reason="pip install 'gitllm-plugin[web,llama-cpp]'")

from starlette.testclient import TestClient

from gitllm_plugin.cli.main import main
from gitllm_plugin.inference.asking import Decoding
from gitllm_plugin.inference.pipeline import Pipeline
from gitllm_plugin.llama_cpp.engine import Engine
from gitllm_plugin.llama_cpp.export import write_llama_folder
from gitllm_plugin.web import server
from tests.tiny_folder import write_tiny_folder

API = "/gradio_api"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    write_tiny_folder(place / "model")
    write_llama_folder(Pipeline.from_pretrained(place / "model", "float32", "cpu"), place / "gguf")
    return place / "gguf"


def shown_by_the_command(folder, monkeypatch, visit):
    """Let `visit` use the page that the command would serve, by a client of its own."""
    seen = []

    def run(app, taken):
        host, port = taken.getsockname()
        with TestClient(app, base_url=f"http://{host}:{port}") as client:
            seen.append(visit(client))

    monkeypatch.setattr(server, "_run", run)
    assert main(["demo", "--model", str(folder), "--port", "0"]) == 0
    return seen[0]


def test_the_page_opens_answers_and_says_why_it_has_no_figures(folder, monkeypatch):
    content = io.BytesIO()
    Image.linear_gradient("L").save(content, "PNG")

    def visit(client):
        assert client.get("/").status_code == 200
        (path,) = client.post(f"{API}/upload", files={"files": ("picture.png", content.getvalue())}).json()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        asked = {"data": [file, None, "what color?", 6, 1, 0, 0.9, 1]}
        joined = client.post(f"{API}/call/respond", json=asked)
        assert joined.status_code == 200, joined.text
        event = joined.json()["event_id"]
        return client.get("/config").json(), client.get(f"{API}/call/respond/{event}").text

    config, events = shown_by_the_command(folder, monkeypatch, visit)
    texts = [str(part["props"].get("value")) for part in config["components"] if part["type"] == "markdown"]
    assert any("llama.cpp gives no attention weights" in text and folder.name in text for text in texts)
    hidden = [part for part in config["components"] if part["type"] == "column" and not part["props"]["visible"]]
    assert len(hidden) == 1  # that of the figures
    chat, attention, words, *_ = json.loads(re.findall(r"event: complete\ndata: (.*)\n", events)[-1])
    expected = Engine(folder, threads=1).answer(
        Image.open(io.BytesIO(content.getvalue())), "what color?", None, Decoding(max_new_tokens=6)
    )
    assert expected in json.dumps(chat, ensure_ascii=False) and expected
    assert attention is None and words is None
