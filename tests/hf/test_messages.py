"""Where messages have their pictures, and fetching those of the web within bounds."""

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from gitllm_plugin.errors import DataError
from gitllm_plugin.hf.messages import read_question
from gitllm_plugin.inference import messages
from gitllm_plugin.m3it.pictures import open_picture


@pytest.mark.parametrize("path", ["httpd/cat.png", "https.jpg", "http_pictures/1.webp"])
def test_a_path_that_begins_like_an_address_is_a_path(path):
    part = {"type": "image", "path": path}
    question = read_question([{"role": "user", "content": [part, {"type": "text", "text": "what is it?"}]}])
    assert question.pictures == (path,)


def encoded(color):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


class Pictures(BaseHTTPRequestHandler):
    """A picture, one somewhere else, none, a stream without an end, and one that comes a byte at a time."""

    over = threading.Event()

    def do_GET(self):  # noqa: N802 - its base's name
        if self.path == "/there":
            self.send_response(302)
            self.send_header("Location", "/red.png")
        else:
            self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        if self.path == "/red.png":
            self.wfile.write(encoded("red"))
        while self.path in ("/endless", "/slow") and not self.over.wait(0.05 if self.path == "/slow" else 0):
            try:
                self.wfile.write(b"x" * (1 if self.path == "/slow" else 2**16))
            except OSError:  # nobody reads it any more
                return

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Pictures.over.set()
    server.shutdown()
    server.server_close()


def asked(**part):
    return [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "what is it?"}]}]


@pytest.mark.parametrize(
    "part",
    [
        {"url": "/red.png"},
        {"image": "/there"},
        {"base64": base64.b64encode(encoded("red")).decode()},
        {"url": f"data:image/png;base64,{base64.b64encode(encoded('red')).decode()}"},
    ],
)
def test_an_address_becomes_its_picture(part, web):
    ((key, given),) = part.items()
    (picture,) = read_question(
        asked(**{key: web + given if given.startswith("/") and len(given) < 20 else given})
    ).pictures
    assert open_picture(picture).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/none", "cannot be fetched: HTTPStatusError: .*404"),
        ("/endless", "has more than 300,000 bytes, the most that are fetched"),
        ("/slow", "took longer than 0.5 s"),
        (":1/", "cannot be fetched: "),
    ],
)
def test_a_picture_that_does_not_come_is_told(place, told, web, monkeypatch):
    monkeypatch.setattr(messages, "MOST_BYTES", 300_000)
    monkeypatch.setattr(messages, "SECONDS", 0.5 if place == "/slow" else 20)
    address = web + place if place.startswith("/") else "http://127.0.0.1" + place
    with pytest.raises(DataError, match=told):
        read_question(asked(url=address))


@pytest.mark.parametrize("part", [{"base64": "%%%"}, {"url": "data:image/png;base64,_"}, {"url": "data:image/png,abc"}])
def test_data_that_is_none_is_told(part):
    with pytest.raises(DataError, match="a picture is (not base64|'data:image/png,abc'; write its bytes as)"):
        read_question(asked(**part))
