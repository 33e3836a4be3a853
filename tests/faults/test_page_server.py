"""The page's server as strangers use it: other hosts' pages, requests of any size, files that are not theirs."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gitllm_plugin.errors import ConfigError
from gitllm_plugin.inference.pipeline import Decoding, Pipeline
from tests.small_run import ENVIRONMENT
from tests.tiny_folder import write_tiny_folder

gr = pytest.importorskip("gradio", reason="the page needs the extra `web`")
import httpx  # noqa: E402 - Gradio's

API = "/gradio_api"
SETTINGS = [4, 1, 0, 0.9, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


class Page:
    """A page that is served by a thread, and a client of it."""

    def __init__(self, pipeline: Pipeline, folder: Path):
        import uvicorn

        from gitllm_plugin.web.server import page_app

        self.folder = folder
        guard = page_app(pipeline, "tiny", folder)
        (self.gradio,) = [route.app for route in guard.app.routes if hasattr(route, "app")]
        self.server = uvicorn.Server(uvicorn.Config(guard, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        picture = io.BytesIO()
        Image.linear_gradient("L").save(picture, "PNG")
        self.picture = self.upload(picture.getvalue())

    def upload(self, content: bytes, name: str = "picture.png") -> str:
        answer = self.client.post(f"{API}/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return answer.json()[0]

    def join(self, question: str | None = "what?", path: str | None = "", settings=SETTINGS, instruction=None):
        """Put a question into the queue."""
        file = None if path is None else {"path": path or self.picture, "meta": {"_type": "gradio.FileData"}}
        return self.client.post(f"{API}/call/respond", json={"data": [file, instruction, question, *settings]})

    def ask(self, question: str | None = "what?", path: str | None = "", settings=SETTINGS, instruction=None):
        """Ask and wait; gives the outputs, or the error's text."""
        joined = self.join(question, path, settings, instruction)
        assert joined.status_code == 200, joined.text
        events = self.client.get(f"{API}/call/respond/{joined.json()['event_id']}").text
        last = re.findall(r"event: (complete|error)\ndata: (.*)\n", events)[-1]
        content = json.loads(last[1])
        return content if last[0] == "complete" else content["error"]

    def ask_when_free(self) -> Any:
        """Ask when the queue is no longer full."""
        while self.join(path=None).status_code == 503:
            time.sleep(0.02)
        return self.ask()

    def close(self):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(timeout=30)
        self.socket.close()


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"):
            patch.setenv(name, "unset")  # put back afterwards
        patch.setattr("gitllm_plugin.web.server.MOST_WAITING", 3)
        patch.setattr("gitllm_plugin.web.server._SESSIONS", 8)
        patch.setattr("gitllm_plugin.web.page._LOOK_EVERY", 1)
        patch.setattr("gitllm_plugin.web.page._DELETE_AFTER", 3600)
        served = Page(Pipeline.from_pretrained(folder, dtype="float32"), tmp_path_factory.mktemp("page"))
        yield served
        served.close()


def said(chat):
    """The last message of a chat."""
    return chat[-1]["content"][0]["text"]


def test_a_question_is_answered(page):
    chat, attention, words, *_ = page.ask()
    assert said(chat) and all(figure.startswith('<img src="data:image') for figure in (attention, words))


# ---------------------------------------------------------------- who may ask


def raw(page, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline()


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "attacker.example:{port}",
        "127.0.0.1.attacker.example:{port}",
        "localhost.attacker.example",
        "localhost@attacker.example",
        "me@127.0.0.1:{port}",
        "127.0.0.2:{port}",
        "0.0.0.0:{port}",
        "[::1",
        "127.0.0.1:{port}/x",
        "127.0.0.1:seven",
        "",
    ],
)
@pytest.mark.parametrize("route", ["/", "/config", f"{API}/queue/data?session_hash=a", f"{API}/upload"])
def test_other_hosts_names_are_refused(page, host, route):
    method = "POST" if route.endswith("upload") else "GET"
    answer = page.client.request(method, route, headers={"Host": host.format(port=page.port)})
    assert answer.status_code in (400, 403), answer.text
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers", [b"", b"Host: 127.0.0.1\r\nHost: attacker.example\r\n", b"Host: attacker.example\r\nHost: localhost\r\n"]
)
def test_no_host_and_two_hosts_are_refused(page, headers):
    status = raw(page, b"GET /config HTTP/1.1\r\n" + headers + b"Connection: close\r\n\r\n").split()[1]
    assert status in (b"400", b"403")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "LocalHost:{port}", "[::1]:{port}", "localhost"]
)
def test_its_own_names_are_served(page, host):
    own = host.format(port=page.port)
    for headers in ({}, {"Origin": f"http://{own}", "Referer": f"http://{own}/?a=b", "Sec-Fetch-Site": "same-origin"}):
        assert page.client.get("/config", headers={"Host": own, **headers}).status_code == 200


FOREIGN = [
    {"Origin": "http://attacker.example"},
    {"Origin": "https://127.0.0.1:{port}"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost:{port}"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://127.0.0.1:{port}.attacker.example"},
    {"Referer": "http://attacker.example/127.0.0.1"},
    {"Referer": "http://127.0.0.1:{port}.attacker.example/"},
    {"Referer": "http://127.0.0.1:{port}@attacker.example/"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_other_pages_are_refused_by_every_route(page, headers):
    headers = {name: value.format(port=page.port) for name, value in headers.items()}
    body = {"data": [None, None, "what?", *SETTINGS], "session_hash": "a", "fn_index": 0}
    for route in ("queue/join", "call/respond", "cancel", "reset", "upload"):
        answer = page.client.post(f"{API}/{route}", json=body, headers=headers)
        assert answer.status_code == 403, route
        assert "access-control-allow-origin" not in answer.headers
    for route in ("/config", f"{API}/info", f"{API}/heartbeat/a", f"{API}/queue/data?session_hash=a", "/theme.css"):
        assert page.client.get(route, headers=headers).status_code == 403, route
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in page.client.options(f"{API}/queue/join", headers=asked).headers


def test_a_link_of_another_page_opens_it(page):
    linked = {"Referer": "http://search.example/", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert page.client.get("/", headers=linked).status_code == 200


def test_what_a_proxy_would_tell_is_not_believed(page):
    answer = page.client.get("/config", headers={"X-Forwarded-Host": "attacker.example", "X-Forwarded-Proto": "https"})
    assert answer.status_code == 200 and "attacker.example" not in answer.text


def test_web_sockets_are_refused(page):
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: YQ==\r\nSec-WebSocket-Version: 13\r\n"
    request = b"GET /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nOrigin: http://attacker.example\r\n" + upgrade
    assert raw(page, request + b"\r\n").split()[1] not in (b"101", b"200")


# ---------------------------------------------------------------- which files


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        "//etc/hostname",
        "etc/hostname",
        "../../../../../../etc/hostname",
        "{uploads}/../secret.txt",
        "{uploads}/%2e%2e/secret.txt",
        "{uploads}/..%2fsecret.txt",
        "%2fetc%2fhostname",
        "file:///etc/hostname",
        "http://127.0.0.1:{port}/config",
        "https://attacker.example/x.png",
        "HTTP://attacker.example/x.png",
        "{here}",
        "{folder}/examples/circle.png",
        ".",
        "",
        "\x00",
    ],
)
def test_no_file_but_uploads_is_served_or_asked_about(page, path):
    (page.folder / "secret.txt").write_text("no upload")
    uploads = page.folder / "uploads"
    path = path.format(uploads=uploads, port=page.port, here=__file__, folder=page.folder)
    for route in (f"file={path}", f"file/{path}", f"proxy={path}"):
        request = f"GET {API}/{route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        status = raw(page, request).split()[1:2]
        assert status and status[0] in (b"400", b"403", b"404"), (route, status)
    if path:
        before = sorted(uploads.rglob("*"))
        assert page.join(path=path).status_code in (400, 403)
        assert sorted(uploads.rglob("*")) == before, "it was copied to where it can be fetched"


def test_links_out_of_the_uploads_are_not_followed(page):
    (page.folder / "uploads" / "link.png").symlink_to("/etc/hostname")
    assert page.join(path=str(page.folder / "uploads" / "link.png")).status_code == 403


def test_an_upload_can_be_fetched_and_a_name_leads_nowhere_else(page):
    assert page.client.get(f"{API}/file={page.picture}").status_code == 200
    for name in ("../../../escaped.png", "/tmp/escaped.png", "..", "a/../../../b.png", "\\..\\..\\c.png", "x" * 300):
        answer = page.client.post(f"{API}/upload", files={"files": (name, b"data")})
        for path in answer.json() if answer.status_code == 200 else ():
            assert Path(path).resolve().is_relative_to(page.folder / "uploads")


@pytest.mark.parametrize(
    "route",
    [
        *("run/respond", "api/respond", "call/v2/respond", "component_server", "process_recording", "stream/a"),
        *("vibe-edit", "undo-vibe-edit", "vibe-code", "dev/reload", "openapi.json", "run-history/records", "deep_link"),
        *("custom_component/a/client/component/x.js", "profiling/traces", "file/etc/hostname"),
    ],
)
def test_routes_that_the_page_does_not_use_are_closed(page, route):
    for answer in (page.client.get(f"{API}/{route}"), page.client.post(f"{API}/{route}", json={})):
        assert answer.status_code == 404
    for outside in ("/docs", "/redoc", "/openapi.json", "/monitoring", "/monitoring/summary", "/login", "/runs"):
        assert page.client.get(outside).status_code in (404, 405)


def test_examples_are_given_at_once_and_answers_are_not(page):
    example = page.client.post(f"{API}/run/predict", json={"data": [1], "fn_index": 0})
    assert example.status_code == 200 and "what shape is in the image?" in example.text
    for number in range(1, 4):
        body = {"data": [None, None, "what?", *SETTINGS], "fn_index": number}
        assert page.client.post(f"{API}/run/predict", json=body).status_code >= 400


def test_a_session_that_took_an_example_is_given_files_too(page, monkeypatch):
    body = {"data": [1], "fn_index": 0, "session_hash": "example"}
    path = page.client.post(f"{API}/run/predict", json=body).json()["data"][0]["value"]["path"]
    monkeypatch.setattr("gradio.image_utils.preprocess_image", lambda *given, **named: 1 / 0)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, None, "what?", *SETTINGS], "session_hash": "example"}
    event = page.client.post(f"{API}/call/respond", json=body).json()["event_id"]
    assert "event: complete" in page.client.get(f"{API}/call/respond/{event}").text


def test_a_postscript_picture_starts_no_program(page, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("picture.eps", "picture.png", "picture.svg", "picture"):
        assert "picture" in page.ask(path=page.upload(eps, name))
    assert not ran.exists()


# ---------------------------------------------------------------- how much


@pytest.mark.parametrize(
    ("question", "instruction"), [("x" * 20_001, None), ("a?", "\N{SLIGHTLY SMILING FACE}" * 20_001)]
)
def test_long_texts_are_refused_before_they_are_tokenized(page, question, instruction, monkeypatch):
    monkeypatch.setattr(Pipeline, "prompt", lambda *given: pytest.fail("it was read"))
    assert "20,001 characters; at most 20,000 are taken" in page.ask(question, instruction=instruction)


def test_the_longest_text_is_answered(page):
    assert isinstance(page.ask("what is it? " * 1_666), list)


def test_large_requests_are_refused_unread(page):
    answer = page.join("x" * 2**20)
    assert answer.status_code == 413 and "20,000 characters" in answer.text
    chunks = (b"x" * 2**16 for _ in range(64))
    assert page.client.post(f"{API}/queue/join", content=chunks).status_code == 413
    head = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert raw(page, head).split()[1] == b"413"
    assert isinstance(page.ask(), list)


def test_large_uploads_are_refused(page, monkeypatch):
    monkeypatch.setattr("gitllm_plugin.web.guard.MOST_UPLOADED", 2**20)
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=a\r\n"
    assert raw(page, head + b"Content-Length: 9999999999\r\n\r\n").split()[1] == b"413"

    def endless() -> Iterator[bytes]:
        yield b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(64):
            yield b"x" * 2**16

    before = {path for path in page.folder.rglob("*") if path.is_file()}
    kind = {"Content-Type": "multipart/form-data; boundary=a"}
    answer = page.client.post(f"{API}/upload", content=endless(), headers=kind)
    assert answer.status_code == 413 and "67,108,864" in answer.text
    with socket.create_connection(("127.0.0.1", page.port)) as connection:  # and one that breaks off
        connection.sendall(head + b"Content-Length: 1000\r\n\r\n" + next(endless()))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    assert {path for path in page.folder.rglob("*") if path.is_file()} == before


def test_uploads_together_are_bounded(page, monkeypatch):
    monkeypatch.setattr("gitllm_plugin.web.guard.MOST_KEPT", 1_000)
    page.client.get("/config")
    answer = page.client.post(f"{API}/upload", files={"files": ("a.png", b"x" * 1_000)})
    assert answer.status_code == 507 and "deleted within the hour" in answer.text


def one_bit_png(width: int, height: int) -> bytes:
    """A picture of a few kilobytes."""
    lines = zlib.compress((b"\0" + bytes((width + 7) // 8)) * height, 9)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x01\x00\x00\x00\x00"
    chunks = ((b"IHDR", header), (b"IDAT", lines), (b"IEND", b""))
    made = (
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize("size", [(10_000, 5_001), (60_000, 60_000), (1, 50_000_001)])
def test_pictures_of_too_many_pixels_are_refused(page, size):
    width, height = size
    content = one_bit_png(width, 10 if height > 10_000 else height)
    content = content.replace(content[16:24], width.to_bytes(4, "big") + height.to_bytes(4, "big"), 1)
    told = page.ask(path=page.upload(content, "huge.png"))
    assert "huge.png" in told and str(page.folder) not in told


@pytest.mark.parametrize(
    "settings", [[10**9, 1, 0, 0.9, 1], [4, 10**6, 0, 0.9, 1], [4, 1, -1, 0.9, 1], [4, 1, 0, 7, 1]]
)
def test_settings_out_of_their_bounds_are_refused(page, settings):
    assert isinstance(page.ask(settings=settings), str)


def test_an_answer_ends_after_its_time(folder):
    pipeline = Pipeline.from_pretrained(folder, dtype="float32")
    picture = Image.linear_gradient("L")
    for beams in (1, 2):
        whole = pipeline.answer(picture, "what?", decoding=Decoding(60, beams))
        short = pipeline.answer(picture, "what?", decoding=Decoding(60, beams, max_seconds=1e-9))
        assert len(short) < len(whole)
    with pytest.raises(ConfigError, match="max_seconds above 0"):
        pipeline.answer(picture, "what?", decoding=Decoding(max_seconds=float("nan")))


def test_the_page_bounds_the_time(page, monkeypatch):
    monkeypatch.setattr("gitllm_plugin.web.page.MOST_SECONDS", 1e-9)
    short = said(page.ask(settings=[60, 1, 0, 0.9, 1])[0])
    monkeypatch.setattr("gitllm_plugin.web.page.MOST_SECONDS", 100.0)
    assert len(short) < len(said(page.ask(settings=[60, 1, 0, 0.9, 1])[0]))


# ---------------------------------------------------------------- the queue


@contextmanager
def endless_answers(monkeypatch) -> Iterator[threading.Event]:
    """Let the question `endless` be answered until the event is set; gives the event."""
    end, stream = threading.Event(), Pipeline.stream

    def endless(self, pictures, question="", *rest):
        if question != "endless":
            yield from stream(self, pictures, question, *rest)
            return
        while not end.wait(0.02):
            yield "still"

    monkeypatch.setattr(Pipeline, "stream", endless)
    try:
        yield end
    finally:
        end.set()


def test_a_full_queue_says_so_and_is_empty_again(page, monkeypatch):
    with endless_answers(monkeypatch):
        joined = [page.join("endless")]
        while page.gradio.get_blocks()._queue.active_jobs == [None]:
            time.sleep(0.02)  # until it is answered, and no longer waits
        joined += [page.join("what?", path=None) for _ in range(6)]
        assert [answer.status_code for answer in joined] == [200] * 4 + [503] * 3
        assert "full" in joined[-1].text
    assert isinstance(page.ask_when_free(), list)


def test_who_leaves_frees_the_place(page, monkeypatch):
    with endless_answers(monkeypatch):
        for _ in range(3):
            event = page.join("endless").json()["event_id"]
            with page.client.stream("GET", f"{API}/call/respond/{event}") as answer:
                next(answer.iter_lines())
            assert isinstance(page.ask_when_free(), list), "the one before is still answered"


@pytest.mark.parametrize("name", ["no picture", "no image", "an error"])
def test_failing_questions_free_their_places(page, name, monkeypatch):
    if name == "an error":
        monkeypatch.setattr(Pipeline, "stream", lambda *given: 1 / 0)
    path = {"no picture": None, "no image": page.upload(b"text"), "an error": page.picture}[name]
    said = {
        "no picture": "There is no picture yet",
        "no image": "bytes that are no image",
        "an error": "The model failed",
    }
    assert all(said[name] in page.ask(path=path) for _ in range(6))
    monkeypatch.undo()
    assert isinstance(page.ask(), list)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"null", b'{"data": "x"}', b'{"data": [1]}', b"\xff\xfe"])
def test_requests_of_another_form_are_refused_and_change_nothing(page, body):
    for route in ("queue/join", "call/respond", "cancel"):
        answer = page.client.post(f"{API}/{route}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 403, 404, 413, 422), (route, answer.text)
    assert isinstance(page.ask(), list)


# ---------------------------------------------------------------- what stays


def test_what_is_kept_of_sessions_is_bounded(page):
    for number in range(12):
        body = {"data": [None, None, "what?", *SETTINGS], "session_hash": f"session{number}"}
        joined = page.client.post(f"{API}/call/respond", json=body)
        while joined.status_code == 503:  # full
            time.sleep(0.02)
            joined = page.client.post(f"{API}/call/respond", json=body)
    assert isinstance(page.ask(), list)
    assert len(page.gradio.state_holder.session_data) <= 8
    assert len(page.gradio.get_blocks()._queue.pending_messages_per_session) <= 8


def test_uploads_of_an_age_are_deleted(page):
    from gradio.route_utils import delete_files_created_by_app

    kept, left = page.upload(b"kept", "kept.png"), page.upload(b"left", "left.png")
    delete_files_created_by_app(page.gradio.get_blocks(), age=3600)
    assert Path(kept).exists() and Path(left).exists()
    assert page.gradio.get_blocks().delete_cache == (1, 3600)
    delete_files_created_by_app(page.gradio.get_blocks(), age=-1)
    assert not Path(kept).exists() and not Path(left).exists()
    page.picture = page.upload(Path(next((page.folder / "examples").glob("*.png"))).read_bytes())


@contextmanager
def demo(folder: Path, tmp_path: Path):
    """Serve the page by the command; gives the process and a client."""
    command = [sys.executable, "-m", "gitllm_plugin", "demo", "--model", str(folder), "--port", "0"]
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True)
    try:
        assert process.stdout is not None
        line = ""
        while "the page is at" not in line:
            line = process.stdout.readline()
            assert line, "the page ended"
        with httpx.Client(base_url=line.split()[4].rstrip("/"), timeout=120) as client:
            for _ in range(100):
                try:
                    client.get("/config")
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("end", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_nothing_is_left_when_the_page_ends(folder, tmp_path, end):
    with demo(folder, tmp_path) as (process, client):
        client.post(f"{API}/upload", files={"files": ("private.png", b"private")})
        (uploads,) = tmp_path.glob("gitllm-page-*")
        assert [path.name for path in uploads.rglob("private.png")] and uploads.stat().st_mode & 0o077 == 0
        process.send_signal(end)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode in (0, -end) and "Traceback" not in rest
    assert not list(tmp_path.glob("gitllm-*")) and not list(tmp_path.rglob("private.png"))


def resident(process: subprocess.Popen) -> int:
    """Megabytes that a process holds."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) // 1024


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process of Linux")
def test_memory_stays_over_a_thousand_questions(folder, tmp_path):
    with demo(folder, tmp_path) as (process, client):
        picture = io.BytesIO()
        Image.linear_gradient("L").save(picture, "PNG")
        held = []
        for number in range(1_001):
            path = client.post(f"{API}/upload", files={"files": (f"{number}.png", picture.getvalue())}).json()[0]
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            joined = client.post(f"{API}/call/respond", json={"data": [file, None, f"what is {number}?", *SETTINGS]})
            events = client.get(f"{API}/call/respond/{joined.json()['event_id']}").text
            assert "event: complete" in events
            if number % 100 == 0:
                held.append(resident(process))
        print("MB after each 100 questions:", held)
        assert max(held[6:]) - max(held[1:6]) < 25, held
